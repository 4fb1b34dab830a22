"""The table of `corral audit`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app({"list": Verb("corral.cli.audit.list", "One row per run, newest first.")}, "Who ran what.")
