"""`corral image`: one file per verb. Each has the command line's half (options) and the half that works on images."""
