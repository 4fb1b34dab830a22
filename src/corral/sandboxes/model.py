"""The nouns of a sandbox: what is asked for, what it may use, what an exec is and how it ended.

Values only; nothing here decides or does.
"""

from dataclasses import dataclass, field
from enum import StrEnum

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Limits of one sandbox, all hard. Part of a pool's key, so that sandboxes of one pool are interchangeable.

    ``disk_bytes`` bounds each writable folder (/tmp, /work), ``files`` the number of files in it.
    """

    memory_bytes: int = 2 * GIB
    cpus: float = 2.0
    processes: int = 512
    files: int = 1_000_000
    disk_bytes: int = 1 * GIB
    open_files: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a runtime needs to start one sandbox.

    Attributes:
        id: unique, ``sbx_…``; names its cgroup, its directory and its host name.
        tenant: whom it belongs to, for its whole life.
        root: absolute path of a prepared root directory, or "" for the host's own read-only /usr.
        network: True gives it the host's network (granted by policy, never by default).
    """

    id: str
    tenant: str
    root: str = ""
    size: Size = field(default_factory=Size)
    network: bool = False

    @property
    def host_name(self) -> str:
        """Its id, as a label of the domain name system: no underscore, at most 63 characters (RFC 1035)."""
        return self.id.replace("_", "-")[:63]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a runtime can do; every power defaults to "no".

    ``disk_limit`` bounds the bytes in each writable folder, ``file_limit`` the number of files. A limit that is not
    claimed may still end the whole sandbox, never more.
    """

    kernel_boundary: bool = False
    network: bool = False
    shared_files: bool = False
    snapshot: bool = False
    terminal: bool = False
    memory_limit: bool = False
    process_limit: bool = False
    disk_limit: bool = False
    file_limit: bool = False


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Window size of a terminal, in character cells."""

    columns: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """One process to run in a sandbox.

    Attributes:
        argv: program and arguments; a program without a slash is looked up in ``env["PATH"]``.
        env: the *whole* environment, exactly.
        cwd: absolute directory inside the sandbox.
        terminal: when given, stdin/stdout/stderr are one pseudo-terminal of this size.
        timeout_s: wall time; when it passes, the whole process tree is killed and the end is TIMED_OUT.
        output_bytes_max: bound on stdout plus stderr; beyond it the tree is killed and the end is OUTPUT_LIMIT.
        merge_output: stdout and stderr are one pipe, told as stdout, so that their order is the command's own.
        reset_after: nobody needs what it leaves: after an exit with status 0 the sandbox is made new at once.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    terminal: TerminalSize | None = None
    timeout_s: float | None = None
    output_bytes_max: int | None = None
    merge_output: bool = False
    reset_after: bool = False


class End(StrEnum):
    """Why an exec ended; exactly one. A non-zero exit is EXITED: a result, not an error."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed-out"
    OUT_OF_MEMORY = "out-of-memory"
    PROCESS_LIMIT = "process-limit"
    DISK_FULL = "disk-full"
    FILE_LIMIT = "file-limit"
    OUTPUT_LIMIT = "output-limit"
    CANCELED = "canceled"
    NOT_STARTED = "not-started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an exec's whole process tree used. Zero where the kernel would not tell."""

    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How an exec ended.

    Attributes:
        end: the reason; the limits each have their own.
        exit_status: the process's own status when it exited by itself (whatever ``end`` says), else None.
        signal: the signal that killed it, else None.
        message: one sentence for the user when ``end`` is not EXITED ("" otherwise).
        left_processes: True when it ended but some of its descendants had to be killed: the sandbox is soiled.
        reset: ``reset_after`` was asked for and carried out: the sandbox is as good as new.
    """

    end: End
    exit_status: int | None = None
    signal: int | None = None
    message: str = ""
    usage: Usage = field(default_factory=Usage)
    left_processes: bool = False
    reset: bool = False

    @property
    def ok(self) -> bool:
        """True for exit status 0 within all limits."""
        return self.end is End.EXITED and self.exit_status == 0

    @property
    def shell_status(self) -> int:
        """The status a shell would report: the exit status, or 128 + signal; 127 when it never started."""
        if self.exit_status is not None:
            return self.exit_status
        if self.end is End.NOT_STARTED:
            return 127
        return 128 + (self.signal or 9)


class EntryKind(StrEnum):
    """What a tree's entry is; devices, sockets and fifos do not exist in trees."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One entry of a tree that goes into or comes out of a sandbox.

    Attributes:
        path: relative, ``/``-separated, no empty, ``.`` or ``..`` segment.
        size_bytes: of a file; 0 otherwise.
        target: of a symlink, verbatim; "" otherwise.
    """

    path: str
    kind: EntryKind
    size_bytes: int = 0
    executable: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeLimits:
    """Guards for one tree transfer; exceeding one ends it with TooLarge that names the limit."""

    total_bytes: int = 16 * GIB
    entries: int = 1_000_000
    file_bytes: int = 16 * GIB
    depth: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Free and total space of a sandbox's folder."""

    total_bytes: int
    free_bytes: int
    files_total: int
    files_free: int
