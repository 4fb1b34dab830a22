"""Bazel's remote execution API, version 2: content, results and executions for clients that speak it."""
