"""What a worker does for functions: compiles programs, hosts instances in native processes, keeps the front running."""
