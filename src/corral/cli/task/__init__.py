"""`corral task`: one file per verb."""
