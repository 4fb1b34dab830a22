"""Small blobs that are written at the same time share their waits for the disk (group commit).

While one batch is being synced the next one gathers. In a batch every file is synced, then every name is published,
then every folder is synced; after the first sync of each kind the journal has most of the others' work done.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

from corral.blobs.adapters.disk_layout import sync_directory
from corral.blobs.adapters.disk_transfer import Upload

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class SmallWrite:
    """An upload that has not begun, and all of its content."""

    upload: Upload
    data: bytes
    quota_bytes: int | None
    now_s: float


class GroupCommit:
    """Gathers small writes; one batch at a time is on the disk. For one event loop."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting: list[tuple[SmallWrite, asyncio.Future[None]]] = []
        self._busy = False

    async def write(self, small: SmallWrite) -> None:
        """Make one blob durable and visible. Raises what ``Upload`` raises.

        Cancellation: safe; the blob, complete and verified, may become visible all the same.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((small, done))
        if not self._busy:
            self._start()
        await done

    def _start(self) -> None:
        batch = [waiting for waiting in self._waiting[:_BATCH] if not waiting[1].cancelled()]
        del self._waiting[:_BATCH]
        self._busy = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        on_disk = self._threads.submit(write_together, [small for small, _done in batch])
        waiters = [done for _small, done in batch]
        on_disk.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._ended, waiters, ended))

    def _ended(self, waiters: list[asyncio.Future[None]], ended: "Future[list[Exception | None]]") -> None:
        for done, error in zip(waiters, ended.result(), strict=True):
            if done.done():
                continue  # cancelled while it waited
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._start()


def write_together(batch: list[SmallWrite]) -> list[Exception | None]:
    """Write a batch; returns, per blob, the error it ended with. Runs in a thread."""
    errors: dict[int, Exception] = {}
    shards: dict[str, list[int]] = {}

    def publish(number: int) -> None:
        shards.setdefault(batch[number].upload.publish(), []).append(number)

    try:
        _each(errors, range(len(batch)), lambda number: _fill(batch[number]))
        _each(errors, range(len(batch)), lambda number: batch[number].upload.sync(batch[number].now_s))
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


def _each(errors: dict[int, Exception], numbers: Iterable[int], step: Callable[[int], object]) -> None:
    """Take the step for every blob that has no error yet."""
    for number in numbers:
        if number in errors:
            continue
        try:
            step(number)
        except Exception as error:  # noqa: BLE001 - it belongs to one blob of the batch, whose writer judges it
            errors[number] = error


def _fill(small: SmallWrite) -> None:
    small.upload.begin(small.quota_bytes)
    small.upload.append([small.data])
