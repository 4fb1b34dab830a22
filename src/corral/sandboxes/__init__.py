"""Sandboxes: one running isolated environment each, our agent at the far end of a byte stream, kept warm in pools."""
