"""The ledger: one audit row per run, one security event per refusal."""
