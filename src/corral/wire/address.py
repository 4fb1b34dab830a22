"""``HOST:PORT`` as people write it, and listening there.

An address is tried before anybody serves at it: one that is taken is then our own clear error, where gRPC would write
lines of its own to stderr.
"""

import errno
import os
import socket
from typing import Final

from corral.kernel.errors import Conflict, CorralError, InvalidSpec

_BACKLOG: Final = 1024


def split_address(address: str) -> tuple[str, int]:
    """``"127.0.0.1:7070"`` → host and port; ``"[::1]:7070"`` works too. Raises InvalidSpec."""
    problem = address_problem(address)
    if problem:
        raise InvalidSpec(problem, field="address")
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """The other way."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_problem(address: str) -> str:
    """What is wrong with an address, in one sentence; "" when it is right."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        return f'"{address}" is not an address; write HOST:PORT, for example "127.0.0.1:7070"'
    return ""


def bind(address: str, *, setting: str) -> socket.socket:
    """A listening socket; ``setting`` is where the address comes from.

    Raises: Conflict when the address is taken, InvalidSpec when it is not this machine's.
    """
    host, port = split_address(address)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, setting, error) from error
    listener.setblocking(False)
    return listener


def check_free(address: str, *, setting: str) -> None:
    """Raises as :func:`bind` does, when nobody could listen there now."""
    bind(address, setting=setting).close()


def _cannot_listen(address: str, setting: str, error: OSError) -> CorralError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"{address} is in use by another process",
            cure=f"stop that one, or choose another address with {setting} (port 0 takes a free one)",
            address=address,
        )
    reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    return InvalidSpec(f"cannot listen at {address}: {reason}", address=address)
