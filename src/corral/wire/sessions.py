"""The session token in a call's metadata: ``authorization: Bearer <token>``."""

from collections.abc import Iterable
from typing import Final, cast

from corral.kernel.errors import Unauthenticated
from corral.wire.server import Context

_KEY: Final = "authorization"
_SCHEME: Final = "Bearer "


def session_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the token."""
    return ((_KEY, _SCHEME + token),)


def session_token(context: Context) -> str:
    """The token that came with a call. Raises Unauthenticated when there is none."""
    for key, value in cast(Iterable[tuple[str, str]], context.invocation_metadata() or ()):
        if key == _KEY and value.startswith(_SCHEME):
            return value.removeprefix(_SCHEME)
    raise Unauthenticated("the call carries no session token")
