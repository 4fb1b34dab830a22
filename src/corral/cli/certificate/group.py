"""The table of `corral certificate`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "new": Verb("corral.cli.certificate.new", "Make a self-signed certificate for a scheduler."),
        "show": Verb("corral.cli.certificate.show", "Print the fingerprint of a certificate."),
    },
    "Make certificates for schedulers, and read them.",
)
