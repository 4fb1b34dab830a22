"""Plain HTTP caches on the tenant's store: what Bazel, ccache and sccache speak without any server of their own."""
