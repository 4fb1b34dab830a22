"""The jail of one Firecracker: a directory that becomes its root, and the command that puts it in there.

The jailer (``docs/jailer.md`` of Firecracker 1.12) wants ``<base>/<program's name>/<id>/root``. Base is a folder of the
box's own below the worker's, so whatever happens, one removal frees all of it, and a sweep finds it. The jailer makes
device nodes in there; the file system must not be mounted ``nodev``.
"""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.snapshots import put

API_SOCKET: Final = "api.sock"
VSOCK: Final = "v.sock"
HOST_PORT: Final = 17727  # the guest calls the host there
_OPEN_FILES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Jail:
    """Attributes:
    folder: everything of it; removed with the box.
    name: how the jailer and Firecracker call the machine.
    program: Firecracker, which the jailer copies.
    user: (uid, gid) of Firecracker; never root's.
    """

    folder: Path
    name: str
    program: Path
    user: tuple[int, int]

    @property
    def root(self) -> Path:
        """What Firecracker sees as /."""
        return self.folder / self.program.name / self.name / "root"

    @property
    def pid_file(self) -> Path:
        """Written by the jailer when Firecracker is in a PID namespace of its own."""
        return self.root / f"{self.program.name}.pid"

    def make(self, files: Mapping[str, Path]) -> None:
        """Create it with read-only ``files`` (name inside: source). Raises SandboxFailed naming what cannot be put in.

        A file that everybody may read is linked, and costs nothing; any other is copied.
        """
        uid, gid = self.user
        try:
            self.root.mkdir(mode=0o700, parents=True)
            os.chown(self.root, uid, gid)
            for name, source in files.items():
                put(source, self.root / name)
        except OSError as error:
            raise SandboxFailed(f"the jail of the machine cannot be made: {error}") from error

    @contextmanager
    def near(self, name: str) -> Iterator[str]:
        """A short path of ``name`` in the root: that of a unix socket has 107 bytes at most."""
        directory = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{name}"
        finally:
            os.close(directory)

    def listen(self) -> socket.socket:
        """Wait for the guest's calls from now on; before the machine starts, so that none is missed. One at a time."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with self.near(f"{VSOCK}_{HOST_PORT}") as path:
                listener.bind(path)
                os.chown(path, *self.user)
                os.chmod(path, 0o600)
                listener.listen(1)
        except OSError as error:
            listener.close()
            raise SandboxFailed(f"nobody can listen for the machine's call: {error}") from error
        return listener

    def deafen(self, listener: socket.socket) -> None:
        """No further calls: who calls later is nobody we know. Idempotent."""
        listener.close()
        with suppress(FileNotFoundError):
            (self.root / f"{VSOCK}_{HOST_PORT}").unlink()

    def command(self, jailer: Path, *, file_bytes_max: int) -> list[str]:
        """What starts Firecracker in it. ``file_bytes_max`` bounds every file that it writes (a snapshot's memory)."""
        uid, gid = self.user
        return [
            *(str(jailer), "--id", self.name, "--exec-file", str(self.program), "--uid", str(uid), "--gid", str(gid)),
            *("--chroot-base-dir", str(self.folder), "--new-pid-ns"),
            *("--resource-limit", f"fsize={file_bytes_max}", "--resource-limit", f"no-file={_OPEN_FILES}"),
            *("--", "--api-sock", f"/{API_SOCKET}", "--level", "Error", "--show-level"),
        ]

    def remove(self) -> None:
        """Everything; idempotent. Raises OSError."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
