"""From configuration to a store, and the loop that keeps it clean."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.tiered import Tier, TieredBlobs
from corral.blobs.config import BlobsConfig, DiskTierConfig, ObjectStoreTierConfig
from corral.blobs.model import StoreLimits
from corral.blobs.ports import BlobJanitor, BlobStore
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CapacityError, DependencyError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore:
    """A store that is open, and the tiers that want cleaning.

    Attributes:
        store: what to read and write.
        cache: the same content, for what can be made again: what is written here survives a loss of power only some
            seconds later.
    """

    store: TieredBlobs
    cache: TieredBlobs
    janitors: tuple[BlobJanitor, ...]


@asynccontextmanager
async def open_store(
    config: BlobsConfig,
    *,
    data_dir: Path,
    quota_bytes: Callable[[str], int | None] | None = None,
    last: tuple[Tier, ...] = (),
    clock: Clock | None = None,
) -> AsyncIterator[OpenStore]:
    """Open every tier of ``config``, then those in ``last`` (for example the scheduler's store over the wire).

    ``quota_bytes`` gives a tenant's own quota on the disk tiers; None there means the tier's ``tenant_bytes``.

    Raises:
        InvalidSpec: an object store's URL or options.
        StoreUnavailable, UnsupportedVersion: the folder of a disk tier cannot be used.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        tiers: list[Tier] = []
        janitors: list[BlobJanitor] = []
        for tier in config.tiers:
            match tier:
                case DiskTierConfig():
                    disk = await stack.enter_async_context(
                        DiskBlobs(
                            Path(tier.path) if tier.path else data_dir / "blobs",
                            limits=StoreLimits(
                                blob_bytes=config.blob_bytes,
                                total_bytes=tier.total_bytes,
                                tenant_bytes=tier.tenant_bytes,
                                age_s=tier.age_s,
                            ),
                            quota_bytes=quota_bytes,
                            grace_s=tier.grace_s,
                            settle_s=tier.settle_s,
                            threads=tier.threads,
                            recent_blobs=tier.recent_blobs,
                            recent_bytes=tier.recent_bytes,
                            clock=clock,
                        )
                    )
                    janitors.append(disk)
                    tiers.append(
                        Tier(name=tier.name, store=disk, deadline_s=tier.deadline_s, write_back=disk.write_back)
                    )
                case ObjectStoreTierConfig():
                    tiers.append(Tier(name=tier.name, store=_object_store(tier, config), deadline_s=tier.deadline_s))
        store = TieredBlobs([*tiers, *last], cool_off_s=config.cool_off_s, clock=clock)
        yield OpenStore(store=store, cache=store.write_back, janitors=tuple(janitors))


async def keep_clean(store: BlobJanitor, clock: Clock, every_s: float, *, wake: Signal | None = None) -> None:
    """Clean now and every ``every_s`` seconds, at once when ``wake`` is notified; runs until it is cancelled.

    A store that fails is reported and tried again at the next turn. Cancellation: safe.
    """
    wake = wake or Signal()
    while True:
        try:
            report = await store.clean(now_s=clock.now_s())
        except (DependencyError, CapacityError) as error:
            _log.warning("cleaning the blob store failed", reason=str(error))
        else:
            if report.evicted_blobs:
                _log.info("evicted blobs", blobs=report.evicted_blobs, bytes=report.evicted_bytes)
        await wake.wait_notified(within_s=every_s)


def _object_store(tier: ObjectStoreTierConfig, config: BlobsConfig) -> BlobStore:
    # Imported only where it is used: the library costs every process that loads it several megabytes.
    from corral.blobs.adapters.object_store import ObjectStoreBlobs, connect  # noqa: PLC0415

    return ObjectStoreBlobs(
        connect(tier.url, options=tier.options, deadline_s=tier.deadline_s),
        prefix=tier.prefix,
        limits=StoreLimits(blob_bytes=config.blob_bytes),
        deadline_s=tier.deadline_s,
    )
