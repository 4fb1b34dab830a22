"""Blobs in memory: for tests and for stores that may vanish with the process."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable
from dataclasses import dataclass

from corral.blobs.content import collect
from corral.blobs.machine import (
    Resident,
    check_blob_size,
    check_digest,
    check_quota,
    check_range,
    check_tenant,
    is_whole,
    plan_eviction,
    range_end,
    slices,
)
from corral.blobs.model import CleanReport, StoreLimits, StoreUsage
from corral.blobs.turns import Turns
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, NotFound


@dataclass(slots=True)
class _Held:
    data: bytes
    used_s: float
    readers: int = 0


class MemoryBlobs:
    """Keeps every blob as one ``bytes``; limits, quotas and eviction as on disk."""

    def __init__(
        self,
        *,
        limits: StoreLimits | None = None,
        quota_bytes: Callable[[str], int | None] | None = None,
        grace_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        """``quota_bytes`` gives a tenant's own quota; None (or without it) means ``limits.tenant_bytes``."""
        self._limits = limits or StoreLimits()
        self._quota_bytes = quota_bytes or (lambda _tenant: None)
        self._grace_s = grace_s
        self._clock = clock or SystemClock()
        self._held: dict[tuple[str, Digest], _Held] = {}
        self._turns: Turns[tuple[str, Digest]] = Turns()

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        check_tenant(tenant)
        return frozenset(digest for digest in digests if not self._use(tenant, digest))

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        check_tenant(tenant)
        check_digest(digest)
        check_range(offset, length)
        held = self._held.get((tenant, digest))
        if held is None:
            raise NotFound(f"no blob {digest}", digest=str(digest))
        if is_whole(digest, offset, length) and Digest.of(held.data, digest.function) != digest:
            del self._held[tenant, digest]
            raise BlobCorrupt(f"the stored bytes of blob {digest} do not match its digest; the blob was removed")
        held.used_s = self._clock.now_s()
        held.readers += 1
        try:
            for piece in slices(held.data[offset : range_end(digest, offset, length)]):
                yield piece
        finally:
            held.readers -= 1

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        check_tenant(tenant)
        check_digest(digest)
        check_blob_size(digest, self._limits)
        async with self._turns.hold((tenant, digest)):
            if self._use(tenant, digest):
                return
            self._check_quota(tenant, digest)
            data = await collect(content, digest)
            self._check_quota(tenant, digest)  # others wrote meanwhile
            self._held[tenant, digest] = _Held(data, self._clock.now_s())

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        check_tenant(tenant)
        for digest in digests:
            self._held.pop((tenant, digest), None)

    async def clean(self, *, now_s: float) -> CleanReport:
        keys = {f"{tenant}/{digest}": (tenant, digest) for tenant, digest in self._held}
        idle = (
            Resident(held.used_s, len(held.data), f"{tenant}/{digest}")
            for (tenant, digest), held in self._held.items()
            if not held.readers
        )
        held_bytes = (await self.usage()).total_bytes
        plan = plan_eviction(idle, held_bytes=held_bytes, limits=self._limits, grace_s=self._grace_s, now_s=now_s)
        for resident in plan:
            del self._held[keys[resident.place]]
        return CleanReport(
            evicted_blobs=len(plan),
            evicted_bytes=sum(resident.size_bytes for resident in plan),
            left=await self.usage(),
        )

    async def usage(self, tenant: str | None = None) -> StoreUsage:
        sizes = [len(held.data) for (owner, _), held in self._held.items() if tenant in (None, owner)]
        return StoreUsage(blobs=len(sizes), total_bytes=sum(sizes))

    def _use(self, tenant: str, digest: Digest) -> bool:
        check_digest(digest)
        held = self._held.get((tenant, digest))
        if held is not None:
            held.used_s = self._clock.now_s()
        return held is not None

    def _check_quota(self, tenant: str, digest: Digest) -> None:
        own = self._quota_bytes(tenant)
        check_quota(
            tenant,
            held_bytes=sum(len(held.data) for (owner, _), held in self._held.items() if owner == tenant),
            more_bytes=digest.size_bytes,
            quota_bytes=self._limits.tenant_bytes if own is None else own,
        )
