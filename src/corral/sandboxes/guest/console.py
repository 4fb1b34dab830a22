"""The last words of a machine's console, in bounded memory: a guest may say as much as it likes."""

import asyncio
import os
import socket
from typing import Final

CONSOLE_BYTES: Final = 16 * 1024
_PIECE_BYTES: Final = 4096


class Console:
    """Reads a socket for as long as it is open and keeps the end of what came. It must be made in the event loop."""

    def __init__(self, connection: socket.socket) -> None:
        """``connection`` is ours from here on."""
        connection.setblocking(False)
        self._connection: socket.socket | None = connection
        self._loop = asyncio.get_running_loop()
        self._kept = bytearray()
        self._loop.add_reader(connection.fileno(), self._read)

    @property
    def text(self) -> str:
        """What was said last, printable."""
        said = bytes(self._kept).decode("utf-8", "replace").replace("\r\n", "\n")
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in said).strip()

    def close(self) -> None:
        """Stop reading; what was read stays. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.remove_reader(connection.fileno())
            connection.close()

    def _read(self) -> None:
        assert self._connection is not None
        try:
            piece = os.read(self._connection.fileno(), _PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return
        self._kept += piece
        del self._kept[:-CONSOLE_BYTES]
