"""Corral: a self-hosted fleet of workers that runs other people's code in isolated, warm sandboxes."""

__version__ = "0.1.0"
