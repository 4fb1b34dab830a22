"""Images of one machine: asked for by reference, prepared once however many ask, kept while used, evicted when idle.

Who asks must be able to get the image from its registry: a prepared image is handed out only after the registry has
given this asker, with his credentials, the manifest, or a moment ago did. Only what an operator put here (``shared``)
is handed out by its digest alone.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog

from corral.images.adapters.credentials import from_docker, from_secret
from corral.images.adapters.process import unpack
from corral.images.adapters.store import ImageFolder, Lock
from corral.images.machine import located, plan_eviction
from corral.images.manifests import Manifests, Resolve
from corral.images.model import (
    ArchivePlace,
    ImageRecord,
    ImagesConfig,
    LayoutPlace,
    Manifest,
    Order,
    Place,
    Platform,
    PreparedImage,
    Progress,
    Reference,
    RegistryPlace,
)
from corral.images.ports import OnProgress
from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish
from corral.kernel.errors import Conflict, CorralError, NotFound, QuotaExceeded

_log = structlog.get_logger("corral.images")
_LOCK_TRY_S: Final = 0.1
_REFERENCES_MAX: Final = 20
_DIGITS_MIN: Final = 4
_DISCARD_WITHIN_S: Final = 60.0


@dataclass(slots=True)
class _Preparation:
    """One image on its way, and those who wait for it."""

    done: asyncio.Future[None]
    listeners: list[OnProgress] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    latest: Progress | None = None

    def tell(self, progress: Progress) -> None:
        self.latest = progress
        for listener in tuple(self.listeners):
            listener(progress)


class Lease:
    """See ``ports.ImageLease``."""

    def __init__(self, image: PreparedImage, release: Callable[[], None]) -> None:
        self.image = image
        self._release: Callable[[], None] | None = release

    def release_nowait(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


class Images:
    """The images of one machine. An async context manager: preparations under way end with it."""

    def __init__(
        self,
        config: ImagesConfig,
        directory: Path,
        *,
        clock: Clock,
        platform: Platform,
        resolve: Resolve,
        in_use: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """``in_use()`` gives the roots that sandboxes stand on now. Raises InvalidSpec for the directory."""
        self._config = config
        self._clock = clock
        self._in_use = in_use
        self._manifests = Manifests(config, clock=clock, platform=platform, resolve=resolve)
        self._folder = ImageFolder(directory, clock)
        self._preparations: dict[str, _Preparation] = {}
        self._room = asyncio.Semaphore(config.preparing)
        self._leased: Counter[str] = Counter()
        self._locks: dict[str, Lock] = {}  # shared, of the images that this process uses or has used
        self._group: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        swept = await asyncio.to_thread(self._folder.sweep)
        if swept:
            _log.warning("swept half-prepared images", images=swept)
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for preparation in self._preparations.values():
            if preparation.task is not None:
                preparation.task.cancel()
        group, self._group = self._group, None
        try:
            if group is not None:
                await group.__aexit__(None, None, None)  # our tasks never fail, and the block's error leaves as it is
        finally:
            for lock in self._locks.values():
                lock.close()
            self._locks.clear()

    # ---- using ----

    async def lease(self, text: str, *, secret: str = "", on_progress: OnProgress = lambda _: None) -> Lease:
        """The image that a tenant names, prepared now if it is not; nobody evicts it before its release.

        ``secret`` holds the tenant's credentials; without one the machine's own are used. ``on_progress`` is called
        from the event loop.

        Raises: InvalidSpec, NotFound, Refused, Unauthenticated, TooLarge, BlobCorrupt, StoreUnavailable,
        QuotaExceeded; each names the image and the cause, and leaves nothing behind.
        Cancellation: nothing is held; the preparation ends when nobody else waits for it.
        """
        reference = Reference.parse(text)
        subject = f"image {reference}"
        if not reference.repository:
            image = self._folder.find(reference.digest)
            if image is None or not image.record.shared:
                raise NotFound(
                    f"{subject}: is not on this worker, and a digest alone does not say where to get it",
                    cure="write registry/name@sha256:…, or let the operator pull it on the worker",
                )
            return await self._ready(image.digest, subject, None, on_progress)
        registry, repository, insecure = located(reference, self._config)
        credentials = (
            from_secret(secret, registry)
            if secret
            else await asyncio.to_thread(from_docker, self._config.credentials_file, registry)
        )
        place = RegistryPlace(registry=registry, repository=repository, insecure=insecure, credentials=credentials)
        manifest = await self._manifests.of(place, reference, subject, on_progress)
        lease = await self._ready(manifest.digest, subject, (place, manifest), on_progress)
        try:
            self._remember(lease.image.record, reference=str(reference))
        except OSError as error:
            lease.release_nowait()
            raise QuotaExceeded(f"{subject}: the worker's disk does not take it: {error.strerror}") from error
        return lease

    async def take(
        self, place: Place, wanted: str, *, name: str, pin: bool = False, on_progress: OnProgress = lambda _: None
    ) -> PreparedImage:
        """An operator puts an image here, from any place: every tenant may name it by its digest.

        Raises and Cancellation: as ``lease``.
        """
        subject = f"image {name}"
        manifest = await self._manifests.now(place, wanted, subject)
        lease = await self._ready(manifest.digest, subject, (place, manifest), on_progress)
        return self._kept(lease, name, pin)

    async def keep(self, digest: str, *, pin: bool = False) -> PreparedImage:
        """What ``take`` does, for an image that is here already. Raises NotFound.

        Cancellation: nothing is held.
        """
        subject = f"image {digest}"
        if self._folder.find(digest) is None:
            raise NotFound(
                f"{subject}: is not on this machine, and a digest alone does not say where to get it",
                cure="write registry/name@sha256:…",
            )
        return self._kept(await self._ready(digest, subject, None, lambda _: None), "", pin)

    def _kept(self, lease: Lease, name: str, pin: bool) -> PreparedImage:
        try:
            self._remember(lease.image.record, reference=name, shared=True, pinned=pin)
            found = self._folder.find(lease.image.digest)
            assert found is not None  # leased
            return found
        finally:
            lease.release_nowait()

    def place_of(self, text: str) -> tuple[Place, str]:
        """Where an operator's words point: ``oci:DIR[:NAME]``, ``docker-archive:FILE[:NAME]`` or a reference.

        Raises InvalidSpec, Refused.
        """
        for prefix, kind in (("oci:", LayoutPlace), ("docker-archive:", ArchivePlace)):
            if text.startswith(prefix):
                path, _, wanted = text.removeprefix(prefix).partition(":")
                return kind(path=str(Path(path).absolute())), wanted or "latest"
        reference = Reference.parse(text)
        registry, repository, insecure = located(reference, self._config)
        credentials = from_docker(self._config.credentials_file, registry)
        place = RegistryPlace(registry=registry, repository=repository, insecure=insecure, credentials=credentials)
        return place, reference.wanted

    def list(self) -> list[PreparedImage]:
        """Every prepared image."""
        return self._folder.list()

    @property
    def pinned(self) -> tuple[str, ...]:
        """What the configuration pins."""
        return self._config.pinned

    def digests(self) -> tuple[str, ...]:
        """Of every prepared image, for those who choose workers."""
        return self._folder.digests()

    def find(self, text: str) -> PreparedImage:
        """A prepared image by digest, by the beginning of one (4 digits or more), or by a reference.

        Raises NotFound, Conflict.
        """
        wanted = text.removeprefix("sha256:")
        by_name = [image for image in self.list() if text in image.record.references]
        by_digest = [
            image for image in self.list() if len(wanted) >= _DIGITS_MIN and image.digest[7:].startswith(wanted)
        ]
        found = by_name or by_digest
        if not found:
            raise NotFound(f"image {text}: is not prepared on this machine", cure="corral image list")
        if len(found) > 1:
            digests = ", ".join(image.digest[:19] for image in found)
            raise Conflict(f"image {text}: names more than one prepared image: {digests}", cure="write the digest")
        return found[0]

    # ---- removing ----

    async def remove(self, digest: str) -> None:
        """Remove a prepared image. Raises NotFound; Conflict when it is in use, here or in another process."""
        if self._folder.find(digest) is None:
            raise NotFound(f"image {digest}: is not prepared on this machine")
        if digest in self._busy() or not await self._removed(digest):
            raise Conflict(f"image {digest}: is in use", cure="wait until no task and no warm sandbox stands on it")

    async def clean(self) -> int:
        """Evict what is idle or over the budget, and let go of what nobody uses; how many images went."""
        busy = self._busy()
        for digest in [digest for digest in self._locks if digest not in busy and digest not in self._preparations]:
            self._locks.pop(digest).close()
        gone = 0
        images = await asyncio.to_thread(self._folder.list)
        for eviction in plan_eviction(images, busy, self._config, now_s=self._clock.now_s()):
            if eviction.digest not in self._busy() and await self._removed(eviction.digest):
                _log.info("image evicted", image=eviction.digest, why=eviction.why)
                gone += 1
        return gone

    async def keep_clean(self) -> None:
        """``clean`` again and again; runs until cancelled."""
        while True:
            await asyncio.sleep(self._config.clean_every_s)
            try:
                await self.clean()
            except (CorralError, OSError) as error:
                _log.warning("images could not be cleaned", error=str(error))

    async def _removed(self, digest: str) -> bool:
        """False when somebody uses it."""
        held = self._locks.pop(digest, None)
        lock = held or self._folder.lock(digest)
        try:
            if not lock.own_nowait():
                return False
            await asyncio.to_thread(self._folder.remove, digest)
            return True
        finally:
            lock.close()

    def _busy(self) -> frozenset[str]:
        """Digests that are leased, or that sandboxes stand on; those are used now."""
        roots = set(self._in_use())
        standing = {digest for digest in self._locks if str(self._folder.place(digest) / "root") in roots}
        for digest in standing:
            self._folder.touch(digest)
        return frozenset(standing | {digest for digest, count in self._leased.items() if count > 0})

    # ---- preparing ----

    async def _ready(
        self, digest: str, subject: str, origin: tuple[Place, Manifest] | None, on_progress: OnProgress
    ) -> Lease:
        """A lease on ``digest``, prepared from ``origin`` when it is not there."""
        self._leased[digest] += 1
        try:
            while True:
                if digest not in self._preparations:
                    image = self._folder.find(digest)
                    if image is not None and self._shared(digest):
                        self._folder.touch(digest)
                        return Lease(image, lambda: self._released(digest))
                await self._prepared(digest, subject, origin, on_progress)
        except BaseException:
            self._released(digest)
            raise

    def _released(self, digest: str) -> None:
        self._leased[digest] -= 1
        if self._leased[digest] <= 0:
            del self._leased[digest]
        self._folder.touch(digest)

    def _shared(self, digest: str) -> bool:
        """Hold the image against other processes; False when one of them is removing or preparing it."""
        if digest in self._locks:
            return True
        lock = self._folder.lock(digest)
        if not lock.share_nowait():
            lock.close()
            return False
        if self._folder.find(digest) is None:  # removed between the look and the lock
            lock.close()
            return False
        self._locks[digest] = lock
        return True

    async def _prepared(
        self, digest: str, subject: str, origin: tuple[Place, Manifest] | None, on_progress: OnProgress
    ) -> None:
        """Wait for the one preparation of ``digest``; start it when there is none."""
        preparation = self._preparations.get(digest)
        if preparation is None:
            if origin is None:
                raise NotFound(f"{subject}: is being removed from this worker")
            assert self._group is not None, "Images is used as a context manager"
            preparation = self._preparations[digest] = _Preparation(asyncio.get_running_loop().create_future())
            preparation.task = self._group.create_task(
                self._prepare(preparation, subject, *origin), name=f"image:{digest}"
            )
        elif preparation.latest is not None:
            on_progress(preparation.latest)
        preparation.listeners.append(on_progress)
        try:
            await _wait_for(preparation.done)
        finally:
            preparation.listeners.remove(on_progress)
            if not preparation.listeners and preparation.task is not None:
                preparation.task.cancel()  # nobody waits any more; nothing to a task that has ended
                self._forgotten(digest, preparation)  # who asks from now on waits for its lock, and starts anew

    def _forgotten(self, digest: str, preparation: _Preparation) -> None:
        if self._preparations.get(digest) is preparation:
            del self._preparations[digest]

    async def _prepare(self, preparation: _Preparation, subject: str, place: Place, manifest: Manifest) -> None:
        """Fills ``preparation.done``; never raises an Exception."""
        try:
            async with self._room:
                await self._carry_out(preparation, subject, place, manifest)
        except asyncio.CancelledError:
            preparation.done.cancel()
            raise
        except OSError as error:
            preparation.done.set_exception(
                QuotaExceeded(f"{subject}: the worker's disk does not take it: {error.strerror}")
            )
        except Exception as error:  # noqa: BLE001 (the error goes to everybody who waits)
            preparation.done.set_exception(error)
        else:
            preparation.done.set_result(None)
        finally:
            self._forgotten(manifest.digest, preparation)
            if preparation.done.done() and not preparation.done.cancelled():
                preparation.done.exception()  # seen: the last waiter may have left in this very moment

    async def _carry_out(self, preparation: _Preparation, subject: str, place: Place, manifest: Manifest) -> None:
        if (held := self._locks.pop(manifest.digest, None)) is not None:
            held.close()  # it is shared, and there is nothing to share
        lock = self._folder.lock(manifest.digest)
        try:
            while not lock.own_nowait():
                preparation.tell(Progress(stage="waiting", layers=len(manifest.layers)))
                await asyncio.sleep(_LOCK_TRY_S)
                if self._folder.find(manifest.digest) is not None and lock.share_nowait():
                    break  # another process has prepared it
            if self._folder.find(manifest.digest) is None:
                await self._unpacked(preparation, subject, place, manifest, lock)
            if lock.share_nowait() and manifest.digest not in self._locks:
                self._locks[manifest.digest], lock = lock, Lock(-1)
        finally:
            lock.close()

    async def _unpacked(
        self, preparation: _Preparation, subject: str, place: Place, manifest: Manifest, lock: Lock
    ) -> None:
        started_s = self._clock.monotonic_s()
        folder = self._folder.begin(manifest.digest)
        try:
            (folder / "root").mkdir(mode=0o755)
            order = Order(
                subject=subject,
                place=place,
                manifest=manifest,
                directory=str(folder / "root"),
                limits=self._config.limits,
                setid=self._config.setid,
                keep_free_bytes=self._config.keep_free_bytes,
            )
            tally = await unpack(order, lock=lock.descriptor, on_progress=preparation.tell)
            preparation.tell(
                Progress(
                    stage="finishing",
                    layer=len(manifest.layers),
                    layers=len(manifest.layers),
                    done_bytes=manifest.size_bytes,
                    total_bytes=manifest.size_bytes,
                    entries=tally.entries,
                )
            )
            record = ImageRecord(
                digest=manifest.digest,
                platform=manifest.platform,
                size_bytes=tally.size_bytes,
                entries=tally.entries,
                layers=len(manifest.layers),
                prepared_s=self._clock.now_s(),
                settings=manifest.settings,
            )
            await asyncio.to_thread(self._folder.publish, folder, record)
        except BaseException as error:
            _log.warning("image not prepared", image=manifest.digest, asked=subject, error=str(error) or "canceled")
            await finish(self._discarded(folder), within_s=_DISCARD_WITHIN_S)
            raise
        _log.info(
            "image prepared",
            image=manifest.digest,
            asked=subject,
            bytes=tally.size_bytes,
            entries=tally.entries,
            seconds=round(self._clock.monotonic_s() - started_s, 3),
        )

    async def _discarded(self, folder: Path) -> None:
        with suppress(FileNotFoundError):  # it was published before the cancellation came
            await asyncio.to_thread(self._folder.discard, folder)

    def _remember(self, record: ImageRecord, *, reference: str, shared: bool = False, pinned: bool = False) -> None:
        """Note the name by which it was asked for, and what an operator said of it."""
        current = self._folder.find(record.digest)
        if current is None:
            return
        before = current.record
        names = before.references
        if reference and reference not in names:
            names = (*names, reference)[-_REFERENCES_MAX:]
        after = msgspec.structs.replace(
            before, references=names, shared=before.shared or shared, pinned=before.pinned or pinned
        )
        if after != before:
            self._folder.write_record(after)


async def _wait_for(done: asyncio.Future[None]) -> None:
    """The result of a future that others wait for too: cancelling this wait does not cancel it."""
    await asyncio.wait({done})
    if done.cancelled():
        raise QuotaExceeded("the preparation of an image was stopped: the worker is closing")
    done.result()
