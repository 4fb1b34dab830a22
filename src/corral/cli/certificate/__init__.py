"""`corral certificate`."""
