"""What many ask of the disk at the same time is done together, in one thread (for writes: group commit).

What is asked in one turn of the event loop is one batch; while it is on the disk the next one gathers. In a batch of
writes every file is synced, then every name is published, then every folder is synced; after the first sync of each
kind the journal has most of the others' work done. What is written back is not synced here at all.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from corral.blobs.adapters.disk_files import DiskFiles
from corral.blobs.adapters.disk_layout import sync_directory
from corral.blobs.adapters.disk_recent import LONG_AGO_S, Use
from corral.blobs.adapters.disk_settling import Settling
from corral.blobs.adapters.disk_transfer import Upload
from corral.blobs.content import check_content
from corral.blobs.model import WritePolicy
from corral.kernel.errors import QuotaExceeded, StoreUnavailable

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_BATCH: Final = 64


class Gathering(Generic[Asked, Answer]):
    """Gathers what is asked; one batch at a time is with ``step``, in a thread. For one event loop.

    ``step`` gives, in the batch's order, an answer or the error that the asker gets.
    """

    def __init__(self, threads: Executor, step: Callable[[list[Asked]], list[Answer | Exception]]) -> None:
        self._threads = threads
        self._step = step
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._busy = False

    async def ask(self, asked: Asked) -> Answer:
        """Raises StoreUnavailable when the threads are gone. Cancellation: safe; what was asked may yet be done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, done))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start)
        return await done

    def _start(self) -> None:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        while self._waiting and not batch:
            batch = [waiting for waiting in self._waiting[:_BATCH] if not waiting[1].cancelled()]
            del self._waiting[:_BATCH]
        self._busy = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            on_disk = self._threads.submit(self._step, [asked for asked, _done in batch])
        except RuntimeError:
            self._refuse(batch)
            return
        waiters = [done for _asked, done in batch]

        def tell(ended: "Future[list[Answer | Exception]]") -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._ended, waiters, ended)

        on_disk.add_done_callback(tell)

    def _refuse(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        for _asked, done in (*batch, *self._waiting):
            if not done.done():
                done.set_exception(StoreUnavailable("the store is closed"))
        self._waiting.clear()
        self._busy = False

    def _ended(self, waiters: "list[asyncio.Future[Answer]]", ended: "Future[list[Answer | Exception]]") -> None:
        for done, answer in zip(waiters, ended.result(), strict=True):
            if done.done():
                continue  # cancelled while it waited
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)
        self._start()


@dataclass(frozen=True, slots=True)
class SmallWrite:
    """An upload that has not begun, and all that should be its content."""

    upload: Upload
    data: bytes
    quota_bytes: int | None
    now_s: float

    def fill(self) -> None:
        """Write the half-written file. Raises OSError."""
        self.upload.fill(self.data, self.now_s)


class SmallWrites:
    """Writes batches of small blobs; what is there already is only marked as used. Runs in threads."""

    def __init__(self, files: DiskFiles, settling: Settling) -> None:
        self._files = files
        self._settling = settling

    def write(self, batch: list[SmallWrite]) -> list[Use | Exception]:
        """Gives, per blob, what its file says now or the error it ended with: InvalidSpec, QuotaExceeded, OSError."""
        answers: dict[int, Use | Exception] = {}
        try:
            _each(answers, range(len(batch)), lambda number: self._present(batch[number]))
            _reserve(answers, batch)
            _each(
                answers,
                range(len(batch)),
                lambda number: batch[number].upload.fill(batch[number].data, batch[number].now_s),
            )
            self._publish(answers, batch)
        finally:
            for small in batch:
                small.upload.discard()
        return [answers[number] for number in range(len(batch))]

    def _present(self, small: SmallWrite) -> Use | None:
        """The use of a blob that is there already. For others the content is verified now: raises InvalidSpec."""
        upload = small.upload
        if (use := self._files.use(upload.tenant, upload.digest, small.now_s, upload.policy)) is None:
            check_content(small.data, upload.digest)
        return use

    def _publish(self, answers: dict[int, Use | Exception], batch: list[SmallWrite]) -> None:
        shards: dict[str, list[int]] = {}

        def publish(number: int) -> Use:
            upload = batch[number].upload
            shard = upload.publish()
            if upload.policy is WritePolicy.THROUGH:
                shards.setdefault(shard, []).append(number)
            else:
                self._settling.add([self._files.layout.blob(upload.tenant, upload.digest)])
            return Use(batch[number].now_s if upload.is_blob else LONG_AGO_S, upload.policy is WritePolicy.THROUGH)

        through = [number for number, small in enumerate(batch) if small.upload.policy is WritePolicy.THROUGH]
        _each(answers, through, lambda number: batch[number].upload.sync())
        _each(answers, range(len(batch)), publish)
        for shard, numbers in shards.items():
            try:
                sync_directory(shard)
            except OSError as error:
                answers.update(dict.fromkeys(numbers, error))


def _reserve(answers: dict[int, Use | Exception], batch: list[SmallWrite]) -> None:
    """Room for all of a tenant's blobs at once, or for each that fits when not all do."""
    numbers: dict[tuple[str, int | None], list[int]] = {}
    for number, small in enumerate(batch):
        if number not in answers:
            numbers.setdefault((small.upload.tenant, small.quota_bytes), []).append(number)
    for (_tenant, quota_bytes), own in numbers.items():
        try:
            Upload.reserve_together([batch[number].upload for number in own], quota_bytes)
        except (QuotaExceeded, OSError):
            _each(answers, own, lambda number: batch[number].upload.reserve(batch[number].quota_bytes))


def _each(answers: dict[int, Use | Exception], numbers: Iterable[int], step: Callable[[int], object]) -> None:
    """Take the step for every blob that has no answer yet; a use that it gives, or what it raises, is the answer."""
    for number in numbers:
        if number in answers:
            continue
        try:
            found = step(number)
        except Exception as error:  # noqa: BLE001 - it belongs to one blob of the batch, whose writer judges it
            answers[number] = error
        else:
            if isinstance(found, Use):
                answers[number] = found
