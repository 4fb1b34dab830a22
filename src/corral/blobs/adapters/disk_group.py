"""What many ask of the disk at the same time is done together, in one thread (for writes: group commit).

While one batch is on the disk the next one gathers. In a batch of writes every file is synced, then every name is
published, then every folder is synced; after the first sync of each kind the journal has most of the others' work done.
What is written back is not synced here at all.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from corral.blobs.adapters.disk_layout import sync_directory
from corral.blobs.adapters.disk_transfer import Upload
from corral.blobs.model import WritePolicy
from corral.kernel.errors import QuotaExceeded

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
        """Cancellation: safe; what was asked may be done all the same."""
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, done))
        if not self._busy:
            self._start()
        return await done

    def _start(self) -> None:
        batch = [waiting for waiting in self._waiting[:_BATCH] if not waiting[1].cancelled()]
        del self._waiting[:_BATCH]
        self._busy = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        on_disk = self._threads.submit(self._step, [asked for asked, _done in batch])
        waiters = [done for _asked, done in batch]

        def tell(ended: "Future[list[Answer | Exception]]") -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._ended, waiters, ended)

        on_disk.add_done_callback(tell)

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
    """An upload that has not begun, and all of its content, verified."""

    upload: Upload
    data: bytes
    quota_bytes: int | None
    now_s: float


def write_together(batch: list[SmallWrite]) -> list[Exception | None]:
    """Write a batch; gives, per blob, the error it ended with. Runs in a thread."""
    errors: dict[int, Exception] = {}
    shards: dict[str, list[int]] = {}
    through = [number for number, small in enumerate(batch) if small.upload.policy is WritePolicy.THROUGH]

    def publish(number: int) -> None:
        shard = batch[number].upload.publish()
        if batch[number].upload.policy is WritePolicy.THROUGH:
            shards.setdefault(shard, []).append(number)

    try:
        _reserve(errors, batch)
        _each(
            errors, range(len(batch)), lambda number: batch[number].upload.fill(batch[number].data, batch[number].now_s)
        )
        _each(errors, through, lambda number: batch[number].upload.sync())
        _each(errors, range(len(batch)), publish)
        for shard, numbers in shards.items():
            try:
                sync_directory(shard)
            except OSError as error:
                errors.update(dict.fromkeys(numbers, error))
    finally:
        for small in batch:
            small.upload.discard()
    return [errors.get(number) for number in range(len(batch))]


def _fill(small: SmallWrite) -> None:
    small.upload.fill(small.data, small.now_s)


def _reserve(errors: dict[int, Exception], batch: list[SmallWrite]) -> None:
    """Room for all of a tenant's blobs at once, or for each that fits when not all do."""
    numbers: dict[tuple[str, int | None], list[int]] = {}
    for number, small in enumerate(batch):
        numbers.setdefault((small.upload.tenant, small.quota_bytes), []).append(number)
    for (_tenant, quota_bytes), own in numbers.items():
        try:
            Upload.reserve_together([batch[number].upload for number in own], quota_bytes)
        except (QuotaExceeded, OSError):
            _each(errors, own, lambda number: batch[number].upload.reserve(batch[number].quota_bytes))


def _each(errors: dict[int, Exception], numbers: Iterable[int], step: Callable[[int], object]) -> None:
    """Take the step for every blob that has no error yet."""
    for number in numbers:
        if number in errors:
            continue
        try:
            step(number)
        except Exception as error:  # noqa: BLE001 - it belongs to one blob of the batch, whose writer judges it
            errors[number] = error
