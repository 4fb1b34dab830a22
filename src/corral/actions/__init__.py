"""Actions: hermetic, cacheable commands by their digest, as Bazel's remote execution API defines them."""
