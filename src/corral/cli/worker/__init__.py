"""`corral worker`: one file per verb."""
