"""Identifiers: sortable by birth, unguessable where they are a right.

An id is ``prefix_`` and 26 characters of Crockford base 32: 48 bits of Unix milliseconds, then 80 random
bits (the layout of ULID, github.com/ulid/spec). Ids of one kind sort by the time they were made, read the same
in a URL, a file name and a database column, and cannot be guessed from one another.
A *token* is 256 random bits and says nothing about when it was made.
"""

import secrets
from collections.abc import Callable
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_CHARACTERS: Final = 10
_RANDOM_CHARACTERS: Final = 16
_ID_CHARACTERS: Final = _TIME_CHARACTERS + _RANDOM_CHARACTERS
_WELL_FORMED: Final = frozenset(_ALPHABET)

RandomBits = Callable[[int], int]
"""``RandomBits(n)`` gives n uniformly random bits; ``secrets.randbits`` outside tests."""


def new_id(prefix: str, *, now_s: float, random_bits: RandomBits = secrets.randbits) -> str:
    """Make an id such as ``task_01k9x4…``; ``now_s`` is Unix time in seconds."""
    return f"{prefix}_{_base32(int(now_s * 1000), _TIME_CHARACTERS)}{_base32(random_bits(80), _RANDOM_CHARACTERS)}"


def new_token(*, random_bits: RandomBits = secrets.randbits) -> str:
    """Make a secret of 256 bits, as 52 characters."""
    return _base32(random_bits(256), 52)


def is_id(text: str, prefix: str) -> bool:
    """Tell whether ``text`` could have come from :func:`new_id` with this prefix."""
    head, _, tail = text.partition("_")
    return head == prefix and len(tail) == _ID_CHARACTERS and _WELL_FORMED.issuperset(tail)


def _base32(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))
