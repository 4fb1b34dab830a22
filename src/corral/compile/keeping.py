"""What was compiled is kept, after the build has gone on: results, include sets, and what explain tells of them.

Outputs wait in memory until a thread has stored them; when too much waits, results are not kept.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import structlog

from corral.compile.beside import Beside
from corral.compile.elsewhere import Elsewhere, Found
from corral.compile.files import FileTable
from corral.compile.frames import Report
from corral.compile.limits import CompileConfig
from corral.compile.model import Outcome
from corral.compile.plan import LiveSet, Plan
from corral.compile.store import ResultStore
from corral.compile.storing import Kept, Outputs, collect, keep
from corral.compile.telling import Teller
from corral.compile.under_way import Run
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CorralError

_BYTES_MAX: Final = 512 * 1024**2
_log: Final = structlog.get_logger("compile")


class Keeper:
    """See the module. Not safe for threads; what blocks goes to those of ``beside``."""

    def __init__(
        self,
        config: CompileConfig,
        *,
        store: ResultStore,
        table: FileTable,
        teller: Teller,
        clock: Clock,
        beside: Beside,
        elsewhere: Elsewhere | None,
    ) -> None:
        self._config = config
        self._store = store
        self._table = table
        self._teller = teller
        self._clock = clock
        self._beside = beside
        self._elsewhere = elsewhere
        self._waiting = 0
        self._bytes = 0
        self._stored = Signal()

    def __len__(self) -> int:
        """How many results wait."""
        return self._waiting

    def configure(self, config: CompileConfig) -> None:
        """Take other limits."""
        self._config = config

    async def flush(self) -> None:
        """Wait until everything that has run is stored and written down."""
        while self._waiting:
            await self._stored.wait_notified(within_s=1.0)
        await self._beside.in_thread(self._teller.write_hits)
        self._teller.write_events()

    def ran_here(self, run: Run, report: Report, *, ended: Callable[[], None]) -> None:
        """A wrapper has compiled. Its outputs are copied at once: the next line of make may change them."""
        full = self._bytes > _BYTES_MAX
        outputs = collect(run.plan, report, object_bytes=0 if full else self._config.object_bytes)
        size_bytes = 0 if isinstance(outputs, str) else sum(map(len, outputs.files.values()))
        self._start(self._keep_run(run, report, outputs), size_bytes, ended)

    def ran_elsewhere(self, plan: Plan, found: Found, *, ended: Callable[[], None]) -> None:
        """A result came from a shared store or a worker, and is in its place."""
        size_bytes = sum(len(content.data) for content in found.entry.contents) if found.entry is not None else 0
        self._start(self._keep_found(plan, found), size_bytes, ended)

    def _start(self, work: Coroutine[Any, Any, None], size_bytes: int, ended: Callable[[], None]) -> None:
        self._waiting += 1
        self._bytes += size_bytes
        self._beside.start(self._until_stored(work, size_bytes, ended))

    async def _until_stored(self, work: Coroutine[Any, Any, None], size_bytes: int, ended: Callable[[], None]) -> None:
        try:
            await work
        finally:
            self._waiting -= 1
            self._bytes -= size_bytes
            self._stored.notify()
            ended()

    async def _keep_run(self, run: Run, report: Report, outputs: Outputs | str) -> None:
        plan = run.plan
        kept, why = await self._beside.in_thread(partial(self._store_run, run, report, outputs))
        for entry in kept.entries:
            self._table.add(entry)
        self._teller.event(plan, Outcome.LOCAL_RUN, why=why, detail=kept.why, took_s=report.lasted_ns / 1e9)
        if kept.include_set is not None:
            plan.remember(LiveSet(kept.include_set, kept.result_key, plan.root), at_most=self._config.include_sets)
            if self._elsewhere is not None:
                self._beside.start(self._share(plan.request_key, kept.result_key))

    def _store_run(self, run: Run, report: Report, outputs: Outputs | str) -> tuple[Kept, str]:
        """What became of the result, and why it was no hit. Blocking."""
        now_s = self._clock.now_s()
        assert run.capture is not None
        kept = (
            Kept(why=outputs)
            if isinstance(outputs, str)
            else keep(
                run.plan,
                run.capture,
                report,
                outputs,
                started_ns=run.started_ns,
                now_s=now_s,
                table=self._table,
                store=self._store,
            )
        )
        why = self._teller.ran(
            run.plan,
            Outcome.LOCAL_RUN,
            include_set=kept.include_set,
            result_key=kept.result_key,
            not_kept=kept.why,
            refused=run.refused,
        )
        self._store.clean_if_over(now_s=now_s)
        return kept, why

    async def _keep_found(self, plan: Plan, found: Found) -> None:
        assert found.entry is not None
        why = await self._beside.in_thread(partial(self._store_found, plan, found))
        live = LiveSet(found.include_set, found.entry.key, plan.root)
        plan.remember(live, at_most=self._config.include_sets)
        result = found.entry.result
        if found.outcome is Outcome.REMOTE_RUN:
            self._teller.event(plan, found.outcome, why=why, took_s=result.duration_s)
        else:
            self._teller.hit(plan, live, found.outcome, result)

    def _store_found(self, plan: Plan, found: Found) -> str:
        """Why it was no hit. Blocking."""
        assert found.entry is not None
        self._store.adopt(plan.request_key, found.include_set, found.entry)
        why = ""
        if found.outcome is Outcome.REMOTE_RUN:
            why = self._teller.ran(
                plan,
                found.outcome,
                include_set=found.include_set,
                result_key=found.entry.key,
                result=found.entry.result,
            )
        self._store.clean_if_over(now_s=self._clock.now_s())
        return why

    async def _share(self, request_key: str, result_key: str) -> None:
        """Give a new result to the shared store."""
        assert self._elsewhere is not None
        now_s = self._clock.now_s()
        try:
            entry = await self._beside.in_thread(partial(self._store.result, result_key, now_s=now_s))
            if entry is not None:
                await self._elsewhere.share(request_key, self._store.sets(request_key), entry)
        except CorralError as error:
            _log.warning("not shared", error=error.message)
