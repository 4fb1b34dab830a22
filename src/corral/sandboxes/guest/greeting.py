"""How a guest is greeted before its agent takes over the stream; native/guest/guest.h is the other end.

The guest says ``HELLO`` once, when it has booted; a machine frozen there is a template. Each machine that goes on
from there gets one ``Go``: its own time, randomness, name and limits. After it the stream is the agent's.
"""

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Final

from corral.kernel.errors import SandboxLost

HELLO: Final = b"corral-guest 1\n"
ENTROPY_BYTES: Final = 64
_HOST_NAME_BYTES: Final = 64
_MAGIC: Final = b"corralgo"
_GO: Final = struct.Struct(f"<8sQQII{ENTROPY_BYTES}s{_HOST_NAME_BYTES}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """What makes a guest this sandbox and no other.

    Attributes:
        unix_s: the time of day.
        entropy: 64 bytes of the host's randomness, never used twice.
        host_name: at most 63 characters.
        memory_bytes, processes: bounds of everything that runs in it.
    """

    unix_s: float
    entropy: bytes
    host_name: str
    memory_bytes: int
    processes: int

    def encode(self) -> bytes:
        """As the guest reads it."""
        assert len(self.entropy) == ENTROPY_BYTES
        return _GO.pack(
            _MAGIC,
            round(self.unix_s * 1e9),
            self.memory_bytes,
            self.processes,
            0,
            self.entropy,
            self.host_name.encode("ascii", "replace")[: _HOST_NAME_BYTES - 1],
        )


async def wait_hello(connection: socket.socket) -> None:
    """Read the guest's hello from a non-blocking stream, and nothing behind it.

    Raises SandboxLost when the stream ends or something else is said. Cancellation: safe, the stream is then useless.
    """
    loop = asyncio.get_running_loop()
    heard = b""
    while len(heard) < len(HELLO):
        try:
            piece = await loop.sock_recv(connection, len(HELLO) - len(heard))
        except OSError as error:
            raise SandboxLost(f"the machine ended while it booted: {error}") from error
        if not piece:
            raise SandboxLost("the machine ended while it booted")
        heard += piece
    if heard != HELLO:
        raise SandboxLost(f"the guest says {heard!r}, which is not the hello of this version")


async def send_go(connection: socket.socket, go: Go) -> None:
    """The guest may not have booted yet. Raises SandboxLost. Cancellation: the stream is then useless."""
    try:
        await asyncio.get_running_loop().sock_sendall(connection, go.encode())
    except OSError as error:
        raise SandboxLost(f"the machine ended before it was a sandbox: {error}") from error
