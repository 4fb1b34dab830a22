"""Corral: a self-hosted fleet of workers that runs other people's code in isolated, warm sandboxes."""

import os

__version__ = "0.1.0"

# gRPC's core writes every lost connection to stderr unless told otherwise before its first import; we tell it once.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
