"""What the daemon needs from others: a compiler that runs elsewhere, and a second tier of results.

Both are optional. Whatever they raise of kernel.errors, the compile goes on here, with one line for the user.
"""

from typing import Protocol

import msgspec

from corral.compile.files import FileEntry
from corral.compile.model import (
    Cacheable,
    CompilerIdentity,
    IncludeSet,
    Invocation,
    KeyInputs,
    Outcome,
)


class CompileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One compile that the local tiers could not answer.

    Attributes:
        argv: the command line, the compiler's absolute path first.
        cwd: absolute directory of the compile.
        root: absolute directory of the project, "" when there is no marker; remote work is refused then.
        environment: the variables that matter.
        invocation, cacheable, identity, inputs: what the local side made of it.
        request_key: the name of the request without the contents of files.
        include_set: what a compile now would read, None when that is not known: then the closure has to be found
            first (``-M``).
    """

    argv: tuple[str, ...]
    cwd: str
    root: str
    environment: dict[str, str]
    invocation: Invocation
    cacheable: Cacheable
    identity: CompilerIdentity
    inputs: KeyInputs
    request_key: str
    include_set: IncludeSet | None


class CompileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back from a worker. The service writes the files and stores successful results.

    Attributes:
        outcome: REMOTE_HIT or REMOTE_RUN.
        exit_code: the compiler's own.
        files: content by role (``object``, ``dependencies``, ``side:<suffix>``).
        include_set: what the compile read, with the hashes that the worker saw.
        worker: who ran it.
        execution: names its audit row.
        duration_s: what the compiler took, whenever that was.
        note: one line for the user's stderr, "" for none.
    """

    outcome: Outcome
    exit_code: int
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes]
    include_set: IncludeSet
    worker: str = ""
    execution: str = ""
    duration_s: float = 0.0
    note: str = ""


class FileHashes(Protocol):
    """Hashes of files, remembered while the files stay untouched. Paths are absolute."""

    def entry(self, path: str) -> FileEntry | None:
        """What the file is now; None when it cannot be read."""
        ...

    def known(self, path: str) -> FileEntry | None:
        """What was seen last, without a look at the file; None when it never was."""
        ...


class RemoteCompiler(Protocol):
    """Compiles on the fleet. Life: made at the daemon's start, ``close`` at its end."""

    def identity_of(self, program: str, here: CompilerIdentity) -> CompilerIdentity:
        """Whose objects come from there: ``here`` itself, or another compiler of ``program``'s name."""
        ...

    async def compile(self, request: CompileRequest, hashes: FileHashes) -> CompileAnswer:
        """Run or find ``request`` elsewhere.

        Raises:
            DependencyError, CapacityError, CallerError: it did not work, or a compiler that is not the one of here
                said no; the caller compiles locally.
        Cancellation: the request is given up; a worker may still finish it.
        """
        ...

    async def close(self) -> None:
        """Free connections; idempotent."""
        ...


class SharedResults(Protocol):
    """The tier behind the disk: an object store that several machines share. Keys are hex, values opaque bytes."""

    async def get(self, key: str) -> bytes | None:
        """The value, None when absent. Raises StoreUnavailable."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Store a value. Raises StoreUnavailable."""
        ...
