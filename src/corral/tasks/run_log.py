"""The log of one run: the command's own bytes, and our lines beside them.

Bytes are kept as they are (invalid UTF-8 too), with the secrets of the run masked. Our own lines begin with
``[corral]`` or ``[corral:error]``, always at the start of a line. Where the bytes go is a plugin's matter.
"""

from collections.abc import Awaitable, Iterable
from typing import Protocol

from corral.tasks.masking import Masker
from corral.tasks.paths import printable_line


class LogOutlet(Protocol):
    """Where a log goes; given by a plugin."""

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Take bytes; a result to await means "wait before you bring more"."""
        ...

    async def close(self) -> None:
        """Every byte given so far is durable when this returns. Raises: DependencyError."""
        ...


class RunLog:
    """Masks, keeps our lines at line starts, and hands on. ``size_bytes`` counts what was handed on."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.size_bytes = 0
        self.closed = False
        self._outlet: LogOutlet | None = None
        self._hidden = tuple(secret.encode() for secret in secrets if secret)
        self._masker = Masker(self._hidden) if self._hidden else None
        self._at_line_start = True

    def attach(self, outlet: LogOutlet) -> None:
        """Send everything from now on to ``outlet``; there is one."""
        if self._outlet is not None:
            raise RuntimeError("two plugins want to carry the log; there is room for one")
        self._outlet = outlet

    def write(self, stream: int, data: bytes) -> Awaitable[None] | None:
        """Add the command's bytes, whichever ``stream`` they come from: a run's are merged where they are written.

        What is returned, if anything, is back-pressure: await it.
        """
        del stream
        return self._hand_on(data if self._masker is None else self._masker.feed(data))

    def command_ended(self) -> Awaitable[None] | None:
        """The command writes nothing more: what was held back cannot become a secret any more. Await the result."""
        return None if self._masker is None else self._hand_on(self._masker.finish())

    def line(self, text: str) -> None:
        """Add a line of ours."""
        self._own_line("[corral] ", text)

    def error(self, text: str) -> None:
        """Add a line of ours about what went wrong."""
        self._own_line("[corral:error] ", text)

    async def close(self) -> None:
        """End the log; when this returns, all of it is durable. Idempotent.

        Raises: DependencyError when it could not be stored.
        Cancellation: the log is closed, its end may not be stored.
        """
        if self.closed:
            return
        self.command_ended()
        self.closed = True
        if self._outlet is not None:
            await self._outlet.close()

    def _own_line(self, prefix: str, text: str) -> None:
        if self.closed:
            raise RuntimeError(f"the log is closed; nobody will read: {text}")
        start = "" if self._at_line_start else "\n"
        data = f"{start}{prefix}{printable_line(text)}\n".encode(errors="replace")
        if self._hidden:
            masker = Masker(self._hidden)
            data = masker.feed(data) + masker.finish()
        self._hand_on(data)  # our lines are few and short: the next write of the command waits for them

    def _hand_on(self, data: bytes) -> Awaitable[None] | None:
        if self.closed:
            raise RuntimeError("the log is closed")
        if not data:
            return None
        self._at_line_start = data.endswith(b"\n")
        self.size_bytes += len(data)
        return None if self._outlet is None else self._outlet.write(data)
