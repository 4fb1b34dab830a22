"""The fleet's outside world: gRPC on both ends of the wire, and the table of workers."""
