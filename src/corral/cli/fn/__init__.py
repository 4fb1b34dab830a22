"""`corral fn`."""
