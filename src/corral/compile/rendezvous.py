"""Where wrappers and command line meet the daemon: a private directory with a socket and a token.

native/cc/daemon.c looks in the same place. The directory belongs to the user and is closed to everybody else; the
token shows that a caller could read it, and a new one is made whenever a daemon starts.
"""

import os
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from corral.compile.frames import TOKEN_BYTES
from corral.kernel.errors import Conflict, InvalidSpec

SOCKET: Final = "socket"
TOKEN: Final = "token"
LISTEN_QUEUE: Final = 4096
"""Wrappers that have not been accepted yet; the kernel has a bound of its own (net.core.somaxconn)."""
_OTHERS: Final = 0o077


def directory(environment: Mapping[str, str], uid: int) -> Path:
    """``$CORRAL_CC_DIR``, else ``$XDG_RUNTIME_DIR/corral-cc`` when that is ours, else ``/tmp/corral-cc-UID``."""
    named = environment.get("CORRAL_CC_DIR", "")
    if named.startswith("/"):
        return Path(named)
    base = environment.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/"):
        try:
            if os.stat(base).st_uid == uid:
                return Path(base) / "corral-cc"
        except OSError:
            pass
    return Path(f"/tmp/corral-cc-{uid}")


def open_private(path: Path) -> int:
    """Make the directory when it is absent, and open it. Raises InvalidSpec when it is not ours alone."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidSpec(
            f"{path} cannot be used: {error.strerror}", cure="name another one with CORRAL_CC_DIR"
        ) from error
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & _OTHERS:
        os.close(descriptor)
        raise InvalidSpec(
            f"{path} is not yours alone (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o})",
            cure="remove it, or name another one with CORRAL_CC_DIR",
        )
    return descriptor


def bind(private: int) -> socket.socket:
    """A listening socket in the open directory. Raises Conflict when another daemon answers there."""
    if is_served(private):
        raise Conflict("another compile daemon of this user runs already")
    try:
        os.unlink(SOCKET, dir_fd=private)
    except FileNotFoundError:
        pass
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(_address(private))
    listening.listen(LISTEN_QUEUE)
    listening.setblocking(False)
    return listening


def is_served(private: int) -> bool:
    """Tell whether wrappers find a daemon in the open directory: one that answers, and its token."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(_address(private))
            os.stat(TOKEN, dir_fd=private)
        except OSError:
            return False
    return True


def _address(private: int) -> str:
    return f"/proc/self/fd/{private}/{SOCKET}"  # whose real name may be too long for a socket


def new_token(private: int) -> bytes:
    """Make a token and put it into the open directory, whole or not at all."""
    token = secrets.token_bytes(TOKEN_BYTES)
    fresh = os.open("token.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=private)
    try:
        os.write(fresh, token)
    finally:
        os.close(fresh)
    os.rename("token.new", TOKEN, src_dir_fd=private, dst_dir_fd=private)
    return token


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")


def world() -> tuple[int, int, int]:
    """Mount namespace, and inode and device of the root: whoever has others means other files by the same names."""
    root = os.stat("/")
    return (os.stat("/proc/self/ns/mnt").st_ino, root.st_ino, root.st_dev)
