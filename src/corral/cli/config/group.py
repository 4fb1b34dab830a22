"""The table of `corral config`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {"show": Verb("corral.cli.config.show", "Check the configuration and print all of it, defaults included.")},
    "Show or check the configuration.",
)
