"""`corral cc`: cached compiles. A compile itself never comes here: see `corral.entry`."""
