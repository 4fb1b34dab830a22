"""QEMU's monitor (docs/interop/qmp-spec.rst of QEMU): JSON, one message a line, over a connected socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from corral.kernel.errors import SandboxFailed, SandboxLost

_LINE_BYTES_MAX: Final = 1024 * 1024


class Qmp:
    """One connection, for one task at a time. ``connected`` greets and closes."""

    def __init__(self, connection: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._events: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def connected(cls, connection: socket.socket) -> AsyncIterator[Self]:
        """A monitor that takes commands, on a connected socket that is ours from here on. Raises SandboxLost."""
        connection.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_LINE_BYTES_MAX)
        try:
            monitor = cls(connection, reader, writer)
            await monitor._heard()  # its greeting
            await monitor.do("qmp_capabilities")
            yield monitor
        finally:
            writer.transport.abort()

    async def do(self, command: str, **arguments: Any) -> Any:
        """Carry out one command; its answer.

        Raises: SandboxFailed with QEMU's own words; SandboxLost when QEMU has ended.
        """
        self._writer.write(_encoded(command, arguments))
        return await self._answered(command)

    async def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Let QEMU have a descriptor, which migrations then know by ``name``. Raises: as ``do``."""
        message = _encoded("getfd", {"fdname": name})
        duplicate = self._connection.dup()  # asyncio guards the one that it reads
        try:
            if socket.send_fds(duplicate, [message], [descriptor]) != len(message):
                raise SandboxLost("the monitor does not take a command")
        except OSError as error:
            raise SandboxLost(f"the monitor is gone: {error}") from error
        finally:
            duplicate.close()
        await self._answered("getfd")

    async def wait_migrated(self) -> None:
        """Return when a migration (out or in) has completed; the capability "events" is on.

        Raises: SandboxFailed when it failed; SandboxLost.
        """
        while True:
            event = self._events.pop(0) if self._events else await self._heard()
            if event.get("event") != "MIGRATION":
                continue
            status = event["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise SandboxFailed(f"the machine's state could not be moved: {status}")

    async def _answered(self, command: str) -> Any:
        while "event" in (message := await self._heard()):
            self._events.append(message)
        if "error" in message:
            raise SandboxFailed(f"QEMU refuses {command}: {message['error'].get('desc', '')}")
        return message.get("return")

    async def _heard(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise SandboxLost(f"the monitor says what cannot be read: {error}") from error
        if not isinstance(message, dict):
            raise SandboxLost("QEMU has ended")
        return message


def _encoded(command: str, arguments: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"execute": command}
    if arguments:
        body["arguments"] = arguments
    return json.dumps(body).encode() + b"\n"
