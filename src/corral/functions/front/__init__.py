"""The HTTP front of a worker: a process of its own, which routes, queues, streams and times requests."""
