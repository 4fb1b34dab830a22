"""A worker's own door: clients with a route come in here, and bytes go straight between them and the worker."""
