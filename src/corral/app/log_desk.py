"""Logs as users read them, and the upkeep that compares the log store with the queue.

A log that grows is read from its scheduler's file, a finished one from the blob that the run names. Where another
scheduler has the file, whoever follows gets the log when it is finished.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Final

import structlog

from corral.blobs.ports import BlobReader
from corral.client.model import RunView
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import DependencyError
from corral.tasks.log_archive import read_archive
from corral.tasks.log_files import LogKey
from corral.tasks.logs import LogStore
from corral.tasks.model import Run
from corral.tasks.views import TaskViews

_COMPARE_EVERY_S: Final = 1.0
_TASKS_PER_QUERY: Final = 500
_FINISHED_WITHIN_S: Final = 15.0  # after the end of its run; longer than any grace of the log store
_LOOK_EVERY_S: Final = 0.25
_log = structlog.get_logger("corral.scheduler")


class LogDesk:
    """Logs of runs whose tenant was checked, and their end when nobody else tells it."""

    def __init__(self, logs: LogStore, blobs: BlobReader, views: TaskViews, clock: Clock) -> None:
        self._logs = logs
        self._blobs = blobs
        self._views = views
        self._clock = clock
        self._followed: Counter[LogKey] = Counter()

    async def read(
        self, tenant: str, task_id: str, run: RunView, *, offset: int, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """The log's bytes; a run that has ended and left nothing has nothing to wait for."""
        key = LogKey(tenant, task_id, run.run)
        at = offset
        if run.log and self._logs.size(key) == 0:
            async for piece in read_archive(self._blobs, tenant, Digest.parse(run.log), offset=at):
                yield piece
            return
        follow_file = follow and not (run.phase.final and self._logs.size(key) == 0)
        self._followed[key] += follow_file
        try:
            async for piece in self._logs.read(key, offset=at, follow=follow_file):
                at += len(piece)
                yield piece
        finally:
            self._followed[key] -= follow_file
            if not self._followed[key]:
                del self._followed[key]
        if at == offset and self._logs.size(key) == 0:
            async for piece in self._finished_elsewhere(key, at, wait=follow):
                yield piece

    async def _finished_elsewhere(self, key: LogKey, offset: int, *, wait: bool) -> AsyncGenerator[bytes, None]:
        """The log as the scheduler left it that has its file; with ``wait``, as soon as it has."""
        until_s = self._clock.monotonic_s() + (_FINISHED_WITHIN_S if wait else 0.0)
        while True:
            run = (await self._views.runs(key.tenant, key.task_id))[key.run]
            if run.log:
                async for piece in read_archive(self._blobs, key.tenant, Digest.parse(run.log), offset=offset):
                    yield piece
                return
            if not _may_have_log(run) or self._clock.monotonic_s() >= until_s:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def keep_sealing(self) -> None:
        """Seal the logs of runs that the queue ended without their worker (lost, canceled, past the deadline).

        Compares open logs with the queue once a second, so that no reader waits for bytes that cannot come; those of
        runs that ended while no scheduler was there are found in the same way.
        """
        while True:
            try:
                await self._compare_open()
            except DependencyError as error:
                _log.warning("logs not compared with the queue", error=str(error))
            await asyncio.sleep(_COMPARE_EVERY_S)

    async def keep_forgetting(self, every_s: float) -> None:
        """Forget the logs of tasks that the queue forgot; their blobs age like all others."""
        while True:
            try:
                await self.forget_expired()
            except DependencyError as error:
                _log.warning("logs of forgotten tasks not removed", error=str(error))
            await asyncio.sleep(every_s)

    async def forget_expired(self) -> int:
        """One turn of :meth:`keep_forgetting`: how many tasks had left a log behind."""
        keys = await self._logs.sealed_logs()
        forgotten = 0
        for at in range(0, len(keys), _TASKS_PER_QUERY):
            some = {(key.tenant, key.task_id) for key in keys[at : at + _TASKS_PER_QUERY]}
            there = await self._views.tasks_named({task_id for _, task_id in some})
            for tenant, task_id in some:
                if task_id not in there:
                    self._logs.forget(tenant, task_id)
                    forgotten += 1
        return forgotten

    async def _compare_open(self) -> None:
        keys = sorted({*self._followed, *self._logs.open_logs()}, key=lambda key: key.task_id)
        for at in range(0, len(keys), _TASKS_PER_QUERY):
            some = keys[at : at + _TASKS_PER_QUERY]
            there = await self._views.tasks_named({key.task_id for key in some})
            for key in some:
                task = there.get(key.task_id)
                if task is None or task.tenant != key.tenant:
                    self._logs.forget(key.tenant, key.task_id)
                elif key.run < len(task.life.runs) and task.life.runs[key.run].phase.final:
                    self._logs.seal(key)


def _may_have_log(run: Run) -> bool:
    """False when the run wrote nothing, as far as its worker said."""
    return run.worker != "" and (run.end is None or run.end.log_bytes > 0)
