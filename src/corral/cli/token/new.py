"""`corral token new`."""

import hashlib
import sys

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import note, print_json
from corral.kernel.ids import new_token


def new(json: Json = False) -> None:
    """Make a token and its hash: give the token to the client, put the hash into the configuration."""
    token = new_token()
    token_hash = "sha256:" + hashlib.sha256(token.encode()).hexdigest()
    if json:
        print_json({"token": token, "hash": token_hash})
        return
    sys.stdout.write(token + "\n")
    note("", f'token_hashes = ["{token_hash}"]')


app = verb_app(new)
