"""Blobs in an object store: S3, Google Cloud Storage, Azure, or a local folder, by URL (obstore).

Keys are ``<prefix>/<tenant>/<hh>/<hash function>-<hex>-<size>``. An object becomes visible when its (multipart)
upload is completed, and that happens only after the content was verified. The bucket's own life-cycle rules
evict; there is no janitor here, and marking a use changes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import obstore
import structlog
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from corral.blobs.content import collect
from corral.blobs.feed import fan_out, paced, verified
from corral.blobs.machine import (
    check_blob_size,
    check_digest,
    check_range,
    check_tenant,
    is_whole,
    range_end,
    slices,
)
from corral.blobs.model import StoreLimits
from corral.blobs.parallel import run_all
from corral.blobs.turns import Turns
from corral.kernel.digest import Digest, Digester
from corral.kernel.errors import BlobCorrupt, CorralError, InvalidSpec, NotFound, StoreUnavailable

PART_BYTES: Final = 8 * 1024 * 1024
"""Content up to this size is one request; larger content is uploaded in parts of this size."""
_PARTS_AT_ONCE: Final = 3
_RANGE_BYTES: Final = 4 * 1024 * 1024
_RANGES_AT_ONCE: Final = 3
_REQUESTS_AT_ONCE: Final = 32
_RETRIES: Final = 3

_log = structlog.get_logger(__name__)


def connect(url: str, *, options: Mapping[str, str], deadline_s: float) -> ObjectStore:
    """An obstore store for ``url`` (``s3://bucket/prefix``, ``gs://``, ``az://``, ``file:///``, ``memory:///``).

    ``options`` are obstore's own: for S3 ``endpoint``, ``region``, ``access_key_id``, ``secret_access_key``…

    Raises:
        InvalidSpec: unknown scheme or option.
    """
    settings: dict[str, Any] = {}
    if url.startswith("file:"):
        settings["mkdir"] = True
    elif not url.startswith("memory:"):
        settings["client_options"] = {
            "allow_http": options.get("endpoint", url).startswith("http://"),
            "connect_timeout": timedelta(seconds=min(5.0, deadline_s)),
            "timeout": timedelta(seconds=deadline_s),
        }
        settings["retry_config"] = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=deadline_s)}
        settings["config"] = dict(options)
    try:
        return from_url(url, **settings)
    except (BaseError, ValueError, TypeError) as error:
        raise InvalidSpec(f'object store: "{url}" cannot be used: {error}', field="url") from error


def store_error(error: Exception, doing: str) -> CorralError:
    """Our error for one of obstore's."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"the object store has nothing there while {doing}")
    cure = ""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        cure = "Check the credentials of the object store and their rights on the bucket."
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"the object store did not answer in time while {doing}")
    first_line = str(error).partition("\n")[0][:300]
    return StoreUnavailable(f"the object store failed while {doing}: {first_line}", cure=cure)


class ObjectStoreBlobs:
    """A BlobStore over one bucket and prefix. Every request ends within ``deadline_s``."""

    def __init__(
        self, store: ObjectStore, *, prefix: str = "", limits: StoreLimits | None = None, deadline_s: float = 30.0
    ) -> None:
        """Of ``limits`` only ``blob_bytes`` applies: an object store has no quotas and evicts by its own rules."""
        self._store = store
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._limits = limits or StoreLimits()
        self._deadline_s = deadline_s
        self._turns: Turns[tuple[str, Digest]] = Turns()
        self._requests = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        check_tenant(tenant)
        asked = frozenset(digests)
        for digest in asked:
            check_digest(digest)
        missing: set[Digest] = set()

        async def look(digest: Digest) -> None:
            if not await self._holds(tenant, digest):
                missing.add(digest)

        await run_all((look(digest) for digest in asked), at_once=_REQUESTS_AT_ONCE)
        return frozenset(missing)

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        check_tenant(tenant)
        check_digest(digest)
        check_range(offset, length)
        position, end = offset, range_end(digest, offset, length)
        if position >= end and not await self._holds(tenant, digest):
            raise _absent(digest)
        digester = Digester(digest.function) if is_whole(digest, offset, length) else None
        while position < end:
            window = await self._read_window(tenant, digest, position, end)
            position += len(window)
            if digester is not None:
                digester.update(window)
                if position >= end and digester.digest() != digest:
                    await self._remove_corrupt(tenant, digest)
            for piece in slices(window):
                yield piece

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        check_tenant(tenant)
        check_digest(digest)
        check_blob_size(digest, self._limits)
        async with self._turns.hold((tenant, digest)):
            if await self._holds(tenant, digest):
                return
            if digest.size_bytes <= PART_BYTES:
                data = await collect(content, digest)
                async with self._request("writing"):
                    await obstore.put_async(self._store, self._key(tenant, digest), data, use_multipart=False)
            else:
                await self._write_parts(tenant, digest, content)

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        check_tenant(tenant)
        for digest in digests:
            check_digest(digest)
        await run_all((self._delete_one(tenant, digest) for digest in digests), at_once=_REQUESTS_AT_ONCE)

    async def _write_parts(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        async def put(stream: AsyncIterable[bytes]) -> None:
            async with asyncio.timeout(self._deadline_s) as deadline:
                await obstore.put_async(
                    self._store,
                    self._key(tenant, digest),
                    paced(stream, deadline, within_s=self._deadline_s),
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

        # An error inside the stream makes obstore abort the multipart upload: nothing becomes visible.
        (failure,) = await fan_out(verified(content, digest), [put], abort_within_s=self._deadline_s)
        if failure is not None:
            raise _writing_failed(failure) from failure

    async def _read_window(self, tenant: str, digest: Digest, position: int, end: int) -> bytes:
        starts = range(position, min(end, position + _RANGES_AT_ONCE * _RANGE_BYTES), _RANGE_BYTES)
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(self._read_range(tenant, digest, start, min(end, start + _RANGE_BYTES)))
                    for start in starts
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return b"".join([part.result() for part in parts])

    async def _read_range(self, tenant: str, digest: Digest, start: int, end: int) -> bytes:
        try:
            async with self._request("reading"):
                data = await obstore.get_range_async(self._store, self._key(tenant, digest), start=start, end=end)
        except NotFound:
            raise _absent(digest) from None
        if len(data) != end - start:
            await self._remove_corrupt(tenant, digest)
        return bytes(data)

    async def _holds(self, tenant: str, digest: Digest) -> bool:
        try:
            async with self._request("looking for a blob"):
                found = await obstore.head_async(self._store, self._key(tenant, digest))
        except NotFound:
            return False
        return found["size"] == digest.size_bytes

    async def _delete_one(self, tenant: str, digest: Digest) -> None:
        try:
            async with self._request("deleting"):
                await obstore.delete_async(self._store, self._key(tenant, digest))
        except NotFound:
            return

    async def _remove_corrupt(self, tenant: str, digest: Digest) -> None:
        await self._delete_one(tenant, digest)
        _log.error("removed a corrupt blob", tenant=tenant, digest=str(digest))
        raise BlobCorrupt(
            f"the stored bytes of blob {digest} do not match its digest; the blob was removed",
            cure="Store the content again.",
            digest=str(digest),
        )

    def _key(self, tenant: str, digest: Digest) -> str:
        name = f"{digest.function.value}-{digest.hash}-{digest.size_bytes}"
        return f"{self._prefix}{tenant}/{digest.hash[:2]}/{name}"

    @asynccontextmanager
    async def _request(self, doing: str) -> AsyncIterator[None]:
        try:
            async with self._requests, asyncio.timeout(self._deadline_s):
                yield
        except (BaseError, OSError, ValueError) as error:
            raise store_error(error, doing) from error


def _writing_failed(failure: Exception) -> Exception:
    if not isinstance(failure, BaseError | OSError | ValueError):
        return failure
    mapped = store_error(failure, "writing")
    # "not found" while writing is the bucket, not the blob
    return StoreUnavailable(mapped.message) if isinstance(mapped, NotFound) else mapped


def _absent(digest: Digest) -> NotFound:
    return NotFound(f"no blob {digest}", digest=str(digest))
