"""Entries over blobs: what a name stands for is there and whole, or the name stands for nothing."""

from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from corral.actions.adapters.messages import blobs_of_result, blobs_of_tree, read_result, read_tree
from corral.blobs.content import read_bytes, write_stream
from corral.blobs.ports import BlobStore
from corral.doors.http_cache.config import HttpCacheConfig
from corral.doors.http_cache.names import EntryName
from corral.doors.http_cache.ports import Entries, Entry
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import CallerError, DependencyError, InvalidSpec, TooLarge

_TOUCH_EVERY_S: Final = 3600.0
_FORGOTTEN_AT_ONCE: Final = 500
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and the tenant in whose store its content is: the asker's own, or the shared one."""

    tenant: str
    digest: Digest
    stored_s: float


class HttpCache:
    """The caches of all tenants. ``spool_dir`` takes uploads whose digest is known only at their end."""

    def __init__(
        self, entries: Entries, blobs: BlobStore, clock: Clock, config: HttpCacheConfig, *, spool_dir: Path
    ) -> None:
        self._entries = entries
        self._blobs = blobs
        self._clock = clock
        self._config = config
        self._spool_dir = spool_dir

    async def find(self, tenant: str, name: EntryName) -> Found | None:
        """What a name stands for, in the tenant's own layer or the shared one below it; None for a miss.

        A name whose content has gone is forgotten; so is one of Bazel's results of which any blob has gone.
        Raises StoreUnavailable.
        """
        for layer in (tenant, self._config.shared):
            if layer and (entry := await self._entries.get(layer, name.text)) is not None:
                if await self._is_whole(layer, name, entry):
                    await self._used(layer, name, entry)
                    return Found(layer, entry.digest, entry.stored_s)
                await self._entries.remove(layer, name.text, digest=entry.digest)
            if layer == self._config.shared:
                break
        return None

    async def store(
        self, tenant: str, name: EntryName, content: AsyncIterable[bytes], *, size_bytes: int | None
    ) -> Digest:
        """Store an entry in the tenant's own layer, over one of the same name.

        Args:
            size_bytes: when it is known before.

        Raises: InvalidSpec for content that is not what its name says; TooLarge; QuotaExceeded; StoreUnavailable.
        """
        if not name.text or name.collection:
            raise InvalidSpec("a directory holds entries and has no content of its own", field="path")
        if size_bytes is not None and size_bytes > self._config.entry_bytes:
            raise TooLarge(
                f"the entry has {size_bytes} bytes; http_cache.entry_bytes allows {self._config.entry_bytes}"
            )
        if name.content_hash and size_bytes is not None:
            digest = Digest(HashFunction.SHA256, name.content_hash, size_bytes)
            await self._blobs.write(tenant, digest, content)
        else:
            function = HashFunction.SHA256 if name.content_hash else HashFunction.BLAKE3
            digest = await write_stream(
                self._blobs,
                tenant,
                content,
                spool_dir=self._spool_dir,
                bytes_max=self._config.entry_bytes,
                function=function,
            )
            if name.content_hash not in ("", digest.hash):
                raise InvalidSpec(f"the content's SHA-256 is {digest.hash}, not what the name says", field="path")
        now_s = self._clock.now_s()
        await self._entries.put(tenant, name.text, Entry(digest, now_s, now_s))
        return digest

    async def remove(self, tenant: str, name: EntryName) -> bool:
        """Forget an entry of the tenant's own layer; whether there was one. Its content stays until it is evicted."""
        return await self._entries.remove(tenant, name.text)

    async def keep_clean(self) -> None:
        """Forget what nobody asked for, again and again; runs until it is cancelled."""
        while True:
            try:
                while await self.forget_old() == _FORGOTTEN_AT_ONCE:
                    continue
            except DependencyError as error:
                _log.warning("old cache entries were not forgotten", reason=str(error))
            await Signal().wait_notified(within_s=self._config.clean_every_s)

    async def forget_old(self) -> int:
        """One batch of it; how many."""
        before_s = self._clock.now_s() - self._config.entry_age_s
        return await self._entries.forget(before_s=before_s, limit=_FORGOTTEN_AT_ONCE)

    async def _is_whole(self, tenant: str, name: EntryName, entry: Entry) -> bool:
        if await self._blobs.find_missing(tenant, [entry.digest]):
            return False
        if not name.maybe_result or entry.digest.size_bytes > self._config.result_bytes:
            return True
        encoded = await read_bytes(self._blobs, tenant, entry.digest, bytes_max=self._config.result_bytes)
        try:
            result = read_result(encoded, HashFunction.SHA256)
        except CallerError:
            return True  # not Bazel's: ccache uses such names too, for bytes of its own
        named = blobs_of_result(result)
        if await self._lacks(tenant, named):
            return False
        try:
            for directory in result.directories:
                tree = await read_bytes(self._blobs, tenant, directory.tree, bytes_max=self._config.result_bytes)
                named = blobs_of_tree(read_tree(tree, HashFunction.SHA256), as_blobs=False)
                if await self._lacks(tenant, named):
                    return False
        except CallerError:
            return False  # a tree that went away, or that is none: nobody could use this result
        return True

    async def _lacks(self, tenant: str, named: list[Digest]) -> bool:
        """Whether any of these is not stored; the empty content always is."""
        return bool(await self._blobs.find_missing(tenant, [digest for digest in named if digest.size_bytes]))

    async def _used(self, tenant: str, name: EntryName, entry: Entry) -> None:
        now_s = self._clock.now_s()
        if now_s - entry.used_s > _TOUCH_EVERY_S:
            await self._entries.touch(tenant, name.text, used_s=now_s)
