"""Bearer tokens: made by us, kept as hashes.

A token carries 256 random bits, so one round of SHA-256 protects it as well as a slow password hash would.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final

from corral.kernel.ids import RandomBits, new_token

TOKEN_MIN: Final = 16
TOKEN_MAX: Final = 512
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CLEAR: Final = re.compile(r"[\x21-\x7e]+")  # what an Authorization header can carry


def new_bearer_token(*, random_bits: RandomBits = secrets.randbits) -> str:
    """A fresh token; whoever finds one in a log sees what it is."""
    return f"corral_{new_token(random_bits=random_bits)}"


def hash_token(token: str) -> str:
    """``sha256:<64 hex>``: what belongs into a configuration file."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def configured_hash(text: str) -> str:
    """The hash of a configured token, which may be one already. Raises ValueError with one sentence."""
    if text.startswith("sha256:"):
        if not _HASH.fullmatch(text):
            raise ValueError('a token\'s hash is "sha256:" and 64 lower-case hex digits')
        return text
    if not TOKEN_MIN <= len(text) <= TOKEN_MAX:
        raise ValueError(f"a token has {TOKEN_MIN} to {TOKEN_MAX} characters; make one with `corral token new`")
    if not _CLEAR.fullmatch(text):
        raise ValueError("a token has no spaces, control characters or letters beyond ASCII")
    return hash_token(text)


def find_hash(token: str, known: Iterable[str]) -> str | None:
    """The hash among ``known`` that is this token's; takes the same time whichever it is, or none."""
    presented = hash_token(token[: TOKEN_MAX + 1]).encode()
    found = None
    for each in known:
        if hmac.compare_digest(presented, each.encode()):
            found = each  # and go on: the time must not tell the place
    return found


def fingerprint(token_hash: str) -> str:
    """The first characters of a hash: enough to tell tokens apart in records."""
    return token_hash.removeprefix("sha256:")[:8]
