"""What the host tells a fresh agent before anything may run: the walls of the sandbox, as values."""

import resource
from dataclasses import dataclass
from typing import Final, Self

from corral.sandboxes.model import Size

WORK: Final = "/work"


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsMount:
    """A tmpfs that the agent bounds. Needs CAP_SYS_ADMIN over the sandbox's mounts until the agent seals itself.

    Attributes:
        path: absolute mount point, which exists.
        size_bytes: most bytes of content.
        files: most inodes.
        fresh: True mounts a new tmpfs there; False remounts the one that the runtime made.
    """

    path: str
    size_bytes: int
    files: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ResourceLimit:
    """A ``setrlimit(2)`` for every exec; ``resource`` is one of ``resource.RLIMIT_*``, -1 means unlimited."""

    resource: int
    soft: int
    hard: int

    @classmethod
    def both(cls, which: int, value: int) -> Self:
        """Soft and hard limit at once."""
        return cls(which, value, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that the agent carries out before it answers; see docs/reference/agent-protocol.md.

    Attributes:
        mounts: bounded tmpfs folders, in this order.
        writable: folders that ``reset`` empties; what lies in them at setup time goes too.
        host_name: "" leaves it as it is.
        rlimits: for every exec; RLIMIT_CORE is 0 unless named here.
        seccomp: a raw ``struct sock_filter[]``; empty for none. Every exec inherits it.
        forbid_user_namespaces: write 0 to max_user_namespaces; when that fails it becomes one of ``Link.notes``.
        drop_capabilities: empty every capability set, the bounding set included.
        grace_s: from SIGTERM to SIGKILL when a kill does not say otherwise.
        work_path: what stands for /work, for a box without mounts of its own; not sent to the agent.
    """

    mounts: tuple[TmpfsMount, ...] = ()
    writable: tuple[str, ...] = ()
    host_name: str = ""
    rlimits: tuple[ResourceLimit, ...] = ()
    seccomp: bytes = b""
    forbid_user_namespaces: bool = False
    drop_capabilities: bool = False
    grace_s: float = 2.0
    work_path: str = WORK

    @classmethod
    def bounded(cls, size: Size, *, host_name: str = "", seccomp: bytes = b"") -> Self:
        """The setup of a namespaced sandbox of this size: /tmp, /work and /dev/shm bounded, everything sealed."""
        folders = ("/tmp", "/work", "/dev/shm")
        return cls(
            mounts=tuple(TmpfsMount(path=path, size_bytes=size.disk_bytes, files=size.files) for path in folders),
            writable=folders,
            host_name=host_name,
            rlimits=(ResourceLimit.both(resource.RLIMIT_NOFILE, size.open_files),),
            seccomp=seccomp,
            forbid_user_namespaces=True,
            drop_capabilities=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reseed:
    """What a machine that was frozen must not share with its copies; given to it before its first exec.

    Attributes:
        unix_ns: the time of day, in nanoseconds since 1970; 0 leaves the clock alone.
        host_name: "" leaves it as it is.
        entropy: at most 512 bytes for the kernel's random generator, which is seeded anew at once. Boot id and machine
            id are made from it then.
    """

    unix_ns: int
    host_name: str = ""
    entropy: bytes = b""
