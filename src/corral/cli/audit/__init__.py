"""`corral audit`: one file per verb."""
