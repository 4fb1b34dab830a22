"""`corral action`: hermetic commands, cached by digest."""
