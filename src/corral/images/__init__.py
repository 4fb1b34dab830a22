"""OCI images: pulled by name or digest, verified while they stream, unpacked once per worker, evicted when idle."""
