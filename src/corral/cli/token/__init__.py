"""`corral token`: one file per verb."""
