"""What every component may use and what uses nothing of ours: errors, ids, digests, units, clock, cleanup."""
