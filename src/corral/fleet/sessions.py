"""Sessions: what a worker gets for its token, and shows with every call until it or this scheduler is gone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from corral.kernel.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class Session:
    """A process of a worker that proved its token."""

    worker_id: str
    instance: str


class Sessions:
    """Open sessions by the hash of their token; a worker has one at a time. Beyond ``most`` the oldest one ends."""

    def __init__(self, make_token: Callable[[], str], *, most: int) -> None:
        self._make_token = make_token
        self._most = most
        self._open: dict[bytes, Session] = {}

    def start(self, worker_id: str, instance: str) -> str:
        """The token of a new session, which ends the worker's older one."""
        self.end(worker_id)
        if len(self._open) >= self._most:  # authenticated and never registered: it will authenticate again
            del self._open[next(iter(self._open))]
        token = self._make_token()
        self._open[_key(token)] = Session(worker_id, instance)
        return token

    def of(self, token: str) -> Session:
        """Whose session token this is. Raises Unauthenticated."""
        session = self._open.get(_key(token))
        if session is None:
            raise Unauthenticated("the session is not known; authenticate again")
        return session

    def end(self, worker_id: str) -> None:
        """Its token is worth nothing any more."""
        self._open = {key: kept for key, kept in self._open.items() if kept.worker_id != worker_id}


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()  # a lookup by hash takes the same time for near misses
