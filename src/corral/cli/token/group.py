"""The table of `corral token`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app({"new": Verb("corral.cli.token.new", "Make a token and its hash.")}, "Make tokens.")
