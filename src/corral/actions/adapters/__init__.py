"""Actions and the outside world: protobuf bytes, the database, the host's file system."""
