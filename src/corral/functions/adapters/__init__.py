"""The registry's places, and the stream between scheduler and worker."""
