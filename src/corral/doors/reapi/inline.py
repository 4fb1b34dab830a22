"""Puts small outputs into a result for clients that ask for them, so that they need not fetch them."""

from dataclasses import dataclass
from typing import Protocol

from google.protobuf.internal.containers import RepeatedScalarFieldContainer

from corral.actions.adapters.messages import digest_from
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobReader
from corral.kernel.digest import HashFunction
from corral.kernel.errors import CallerError
from corral.wire.reapi import remote_execution_pb2 as reapi


class _Asking(Protocol):
    """A request that may ask for content."""

    inline_stdout: bool
    inline_stderr: bool

    @property
    def inline_output_files(self) -> "RepeatedScalarFieldContainer[str]": ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants to find in a result."""

    stdout: bool
    stderr: bool
    files: frozenset[str]

    @classmethod
    def of(cls, request: _Asking) -> "Wanted | None":
        """What a request asks for; None for nothing, as most do."""
        files = request.inline_output_files
        if not (request.inline_stdout or request.inline_stderr or files):
            return None
        return cls(request.inline_stdout, request.inline_stderr, frozenset(files))


class Inliner:
    """Adds at most ``bytes_max`` of content to one result; what does not fit is left to be fetched."""

    def __init__(self, store: BlobReader, *, bytes_max: int) -> None:
        self._store = store
        self._bytes_max = bytes_max

    async def fill(self, tenant: str, encoded: bytes, wanted: Wanted, function: HashFunction) -> bytes:
        """The encoded result, with what was asked for as far as it fits and is stored."""
        result = reapi.ActionResult.FromString(encoded)
        left = self._bytes_max
        changed = False
        if wanted.stdout and not result.stdout_raw:
            result.stdout_raw = await self._read(tenant, result.stdout_digest, function, left)
            left -= len(result.stdout_raw)
            changed |= bool(result.stdout_raw)
        if wanted.stderr and not result.stderr_raw:
            result.stderr_raw = await self._read(tenant, result.stderr_digest, function, left)
            left -= len(result.stderr_raw)
            changed |= bool(result.stderr_raw)
        for file in result.output_files:
            if file.path in wanted.files and not file.contents:
                file.contents = await self._read(tenant, file.digest, function, left)
                left -= len(file.contents)
                changed |= bool(file.contents)
        return result.SerializeToString() if changed else encoded

    async def _read(self, tenant: str, digest: reapi.Digest, function: HashFunction, left: int) -> bytes:
        if not 0 < digest.size_bytes <= left:
            return b""
        try:
            return await read_bytes(self._store, tenant, digest_from(digest, function, "digest"), bytes_max=left)
        except CallerError:  # it went away, or its name is none: the client finds that out by itself
            return b""
