"""Functions: named Wasm programs, their revisions, and the instances of them on workers."""
