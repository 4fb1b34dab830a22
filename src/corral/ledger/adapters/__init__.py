"""The ledger's outside world."""
