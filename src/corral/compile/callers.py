"""Wrappers that wait, as the service sees them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, Protocol

from corral.compile import frames

_EVERY_S: Final = 3.0
"""A wrapper gives up after 10 s without a word (``SILENCE_MS`` in native/cc/cc.h)."""
_NOTE_EVERY_S: Final = 30.0


class Caller(Protocol):
    """The connection of one wrapper."""

    def reply(self, frame: bytes) -> None:
        """Send a frame; nothing happens when the wrapper is gone."""
        ...

    @property
    def gone(self) -> bool:
        """True once the wrapper has left."""
        ...


class Waiting:
    """Whoever waits for something that may last: told every few seconds that we live."""

    def __init__(self) -> None:
        self._callers: set[Caller] = set()
        self._noted_s = -_NOTE_EVERY_S

    @contextmanager
    def kept(self, caller: Caller) -> Iterator[None]:
        """``caller`` waits for this block."""
        self._callers.add(caller)
        try:
            yield
        finally:
            self._callers.discard(caller)

    def note(self, caller: Caller, text: str, *, now_s: float) -> None:
        """One line for the user, not for each of a thousand compiles. ``now_s``: steady time."""
        if now_s - self._noted_s >= _NOTE_EVERY_S:
            self._noted_s = now_s
            caller.reply(frames.note(text))

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            for caller in self._callers:
                caller.reply(frames.WAIT)
