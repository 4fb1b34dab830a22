"""Benchmarks: every figure is a ratio against the bare operation or a peer, measured in the same run."""
