"""The nouns of actions, free of any protocol's classes.

An *action* is a command, a tree of inputs and a platform; the digest of its encoding names it, and with it its result.
Encodings are those of Bazel's remote execution API (``actions.adapters.messages``), so its clients' digests are ours.
All digests inside one action are of the hash function of the action's own.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from corral.kernel.digest import Digest
from corral.sandboxes.model import Usage


class ActionFile(msgspec.Struct, frozen=True):
    """A file of an input or output directory."""

    name: str
    digest: Digest
    executable: bool = False


class ActionSubdirectory(msgspec.Struct, frozen=True):
    """A directory within a directory: the digest of its encoded :class:`ActionDirectory`."""

    name: str
    digest: Digest


class ActionSymlink(msgspec.Struct, frozen=True):
    """A symbolic link; the target is verbatim."""

    name: str
    target: str


class ActionDirectory(msgspec.Struct, frozen=True):
    """One directory of an input root or of an output; each list sorted, names unique over all three."""

    files: tuple[ActionFile, ...] = ()
    directories: tuple[ActionSubdirectory, ...] = ()
    symlinks: tuple[ActionSymlink, ...] = ()


class OutputStyle(StrEnum):
    """How a command names what it leaves; it also decides where symlinks are told."""

    PATHS = "paths"  # output_paths, since API 2.1
    FILES = "files"  # output_files and output_directories


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Paths are relative to ``working_directory``, which is relative to the input root.

    Attributes:
        output_files, output_directories: expected of this kind; only with ``OutputStyle.FILES``.
        output_paths: expected of any kind; only with ``OutputStyle.PATHS``.
        root_directories: also tell an output directory as a plain directory, not only as one encoded tree.
    """

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    style: OutputStyle = OutputStyle.PATHS
    output_files: tuple[str, ...] = ()
    output_directories: tuple[str, ...] = ()
    output_paths: tuple[str, ...] = ()
    working_directory: str = ""
    platform: tuple[tuple[str, str], ...] = ()
    root_directories: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """All paths, of any style."""
        return self.output_paths or (*self.output_files, *self.output_directories)


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """A command on its inputs. ``timeout_s`` None means the server's own; ``platform`` () means the command's."""

    command: Digest
    input_root: Digest
    timeout_s: float | None = None
    do_not_cache: bool = False
    salt: bytes = b""
    platform: tuple[tuple[str, str], ...] = ()


class OutputFile(msgspec.Struct, frozen=True):
    """A file that an action left."""

    path: str
    digest: Digest
    executable: bool = False


class OutputDirectory(msgspec.Struct, frozen=True):
    """A directory that an action left: ``tree`` is the blob that holds all of it, ``root`` its top when asked for."""

    path: str
    tree: Digest
    root: Digest | None = None


class OutputSymlink(msgspec.Struct, frozen=True):
    """A symbolic link that an action left."""

    path: str
    target: str


class ActionTimes(msgspec.Struct, frozen=True, kw_only=True):
    """When an execution passed which point; Unix seconds, 0 where it did not."""

    queued_s: float = 0.0
    worker_start_s: float = 0.0
    worker_completed_s: float = 0.0
    input_fetch_start_s: float = 0.0
    input_fetch_completed_s: float = 0.0
    execution_start_s: float = 0.0
    execution_completed_s: float = 0.0
    output_upload_start_s: float = 0.0
    output_upload_completed_s: float = 0.0


class ActionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an action did.

    Attributes:
        exit_code: the command's own; 128 + signal when a signal killed it (``ExecutionOutcome.message`` says so).
        stdout, stderr: the beginning inline when it is short; ``stdout_digest`` names all of it whenever there is any.
        file_symlinks, directory_symlinks: links among ``output_files`` and ``output_directories``; those among
            ``output_paths`` are ``symlinks``.
    """

    exit_code: int = 0
    files: tuple[OutputFile, ...] = ()
    directories: tuple[OutputDirectory, ...] = ()
    symlinks: tuple[OutputSymlink, ...] = ()
    file_symlinks: tuple[OutputSymlink, ...] = ()
    directory_symlinks: tuple[OutputSymlink, ...] = ()
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_digest: Digest | None = None
    stderr_digest: Digest | None = None
    worker: str = ""
    times: ActionTimes = ActionTimes()


class Ended(StrEnum):
    """How an execution ended; everything but EXITED is told beside the result, and is never cached."""

    EXITED = "exited"  # by itself, whatever its exit code
    SIGNALED = "signaled"  # killed by a signal that was none of ours
    TIMED_OUT = "timed-out"  # the action's own timeout; what it left until then is in the result
    LIMIT = "limit"  # memory, processes, disk, files or output of its sandbox; the message says which
    NOT_STARTED = "not-started"  # no such program, or no such working directory


class ActionReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker tells of an execution; travels as JSON in the run's report.

    Attributes:
        result: the encoded result.
        named: every blob that the result names, those inside its trees too.
        missing: inputs that were not stored; then there is no result.
        elsewhere: digest of a blob that holds the whole report, when it is too long for a run's; nothing else is set.
    """

    ended: Ended | None = None
    message: str = ""
    result: bytes = b""
    named: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    do_not_cache: bool = False
    elsewhere: str = ""


class Stage(StrEnum):
    """Where an execution stands; in this order."""

    CACHE_CHECK = "cache-check"
    QUEUED = "queued"
    EXECUTING = "executing"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A result as the action cache holds it.

    Attributes:
        encoded: ``build.bazel.remote.execution.v2.ActionResult``, verbatim.
        named: every blob that it names, those inside its trees too.
        execution: id of the execution that made it; "" when a client stored it.
    """

    encoded: bytes
    named: tuple[Digest, ...] = ()
    stored_s: float = 0.0
    execution: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOutcome:
    """The end of an execution.

    Attributes:
        result: encoded, as in :class:`StoredResult`; None when there is none (then ``error`` says why).
        ended: how the command ended; EXITED for a cached result.
        message: one sentence for people; "" when there is nothing to say.
        error: why the service could not do what was asked: MissingBlobs, InvalidSpec, Conflict (canceled), ….
    """

    result: bytes | None
    cached: bool = False
    ended: Ended = Ended.EXITED
    message: str = ""
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionUpdate:
    """One step of an execution.

    Attributes:
        execution: its id, by which one can come back to it (``ActionService.wait``), also after a restart.
        outcome: with COMPLETED, and only then.
    """

    execution: str
    action: Digest
    stage: Stage
    worker: str = ""
    outcome: ExecutionOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What became of an action on a worker.

    Attributes:
        named: every blob that ``result`` names; all of them are stored.
        argv, env_digest, image, runtime: what really ran, for the audit row.
        input_bytes, input_files: of the input root, each file counted as often as it occurs.
        warm: its sandbox stood ready.
    """

    result: ActionResult
    ended: Ended
    message: str = ""
    named: tuple[Digest, ...] = ()
    do_not_cache: bool = False
    argv: tuple[str, ...] = ()
    env_digest: str = ""
    image: str = ""
    runtime: str = ""
    sandbox: str = ""
    warm: bool = False
    cold_reason: str = ""
    acquire_s: float = 0.0
    input_files: int = 0
    input_bytes: int = 0
    exit_status: int | None = None
    signal: int | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def succeeded(self) -> bool:
        """True when the result may be cached, unless somebody asked for the contrary."""
        return self.ended is Ended.EXITED and self.result.exit_code == 0
