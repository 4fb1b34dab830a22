"""The HTTP interface of an older worker for Wasm functions, Galago (later Procyon): its clients go on working."""
