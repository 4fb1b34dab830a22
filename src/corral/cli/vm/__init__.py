"""`corral vm`: one file per verb, as for `corral image`."""
