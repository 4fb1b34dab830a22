"""Compiles on the fleet: lay a compile out as an action, find a worker, send what it lacks, take the outputs."""
