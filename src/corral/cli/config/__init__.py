"""`corral config`: one file per verb."""
