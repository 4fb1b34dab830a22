"""Tasks: queued units of work with logs, artifacts, caches, retries and dependencies; each attempt is a run."""
