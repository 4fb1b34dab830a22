"""The daemon's answer to one wrapper: here it is, compile it and tell me, or do it yourself.

A hit is answered within one call, without a task: parse (remembered), compare what was read with the disk, place the
object, reply. Everything else may wait: to learn who the compiler is, for an equal compile that runs already, for a
worker. Life: an async context manager; leaving it stores what has run and closes the way to workers.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final, Protocol, TypeVar

import blake3
import msgspec
import structlog

from corral.compile import closure, frames
from corral.compile.capture import Capture, capture
from corral.compile.explain import Record, diffs, reason
from corral.compile.files import FileTable
from corral.compile.frames import Head, MalformedFrame, Report
from corral.compile.identity import Identities
from corral.compile.journal import Event, Journal
from corral.compile.limits import CompileConfig
from corral.compile.model import Outcome
from corral.compile.plan import LiveSet, Plan, moment_of
from corral.compile.records import Records
from corral.compile.store import ResultStore
from corral.compile.storing import Kept, keep, today
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal

T = TypeVar("T")
_log: Final = structlog.get_logger("compile")
_WAIT_EVERY_S: Final = 3.0
_UMASK_BYTES: Final = 4
_WAITING_BYTES_MAX: Final = 512 * 1024**2
"""Outputs that wait in memory to be stored; with more, results are not kept."""


class Caller(Protocol):
    """The connection of one wrapper."""

    def reply(self, frame: bytes) -> None:
        """Send a frame; nothing happens when the wrapper is gone."""
        ...

    @property
    def gone(self) -> bool:
        """True once the wrapper has left."""
        ...


class _Run:
    """A compile that a wrapper carries out for us."""

    __slots__ = ("caller", "capture", "changed", "number", "plan", "started_ns")

    def __init__(self, number: int, plan: Plan, captured: Capture, caller: Caller, started_ns: int) -> None:
        self.number = number
        self.plan = plan
        self.capture = captured
        self.caller = caller
        self.started_ns = started_ns
        self.changed = Signal()


class CompileService:
    """One per user. Not safe for threads; work that blocks goes to its own few."""

    def __init__(
        self,
        config: CompileConfig,
        *,
        store: ResultStore,
        records: Records,
        journal: Journal,
        clock: Clock,
        namespace: tuple[int, int, int],
    ) -> None:
        self._config = config
        self._store = store
        self._records = records
        self._journal = journal
        self._clock = clock
        self._namespace = namespace
        self._table = FileTable(closure.traits, clock.now_s)
        self._identities = Identities()
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._runs: dict[int, _Run] = {}
        self._running: dict[str, _Run] = {}
        self._numbers = 0
        self._latest: OrderedDict[str, tuple[Plan, LiveSet, float]] = OrderedDict()
        self._waiting_bytes = 0
        self._waiting = 0
        self._stored = Signal()
        self._group: asyncio.TaskGroup
        self._threads: ThreadPoolExecutor
        self.used_s = clock.monotonic_s()
        """When the last request came."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve within this block. Cancellation: what has run is still stored, what runs is forgotten."""
        with ThreadPoolExecutor(self._config.jobs, thread_name_prefix="store") as self._threads:
            async with asyncio.TaskGroup() as self._group:
                yield
            await self._in_thread(self._flush_latest)
        self._journal.write()

    @property
    def busy(self) -> bool:
        """True while something runs or waits to be stored."""
        return bool(self._runs or self._waiting)

    def configure(self, config: CompileConfig) -> None:
        """Take other limits; ``jobs`` stays."""
        self._config = config

    def figures(self) -> dict[str, object]:
        """For the command line."""
        return {
            "running": len(self._runs),
            "storing": self._waiting,
            "plans": len(self._plans),
            "files": len(self._table),
            "used_bytes": self._store.used_bytes,
            "unwritten": self._store.unwritten,
        }

    # Requests

    def ask(self, head: Head, frame: bytes, caller: Caller) -> bytes | None:
        """The answer to a compile; None when it comes later. Raises MalformedFrame."""
        self.used_s = self._clock.monotonic_s()
        plan = self._plan(head, frame)
        if plan is None:
            return frames.PASS
        umask = int.from_bytes(frame[frames.HEAD_BYTES : frames.HEAD_BYTES + _UMASK_BYTES], "little")
        if plan.bypass is None:
            identity = self._identities.known(plan.question)
            if identity is None:
                self._start(self._meet(plan, umask, caller), caller)
                return None
            if getattr(plan, "identity", None) is not identity:
                plan.identify(identity)
                plan.sets = None
        return self._decide(plan, umask, caller)

    def report(self, head: Head, frame: bytes) -> bytes:
        """Take what a run left. Raises MalformedFrame."""
        report = frames.read_report(head, frame)
        run = self._runs.pop(report.run, None)
        if run is None:
            return frames.DONE
        if report.status:
            self._end(run)
            self._event(run.plan, Outcome.FAILED, took_s=report.lasted_ns / 1e9)
            return frames.DONE
        outputs = self._collect(run, report)
        size = 0 if isinstance(outputs, str) else sum(map(len, outputs[0].values()))
        self._waiting_bytes += size
        self._waiting += 1
        self._start(self._keep(run, report, outputs, size), None)
        return frames.DONE

    def left(self, caller: Caller) -> None:
        """A wrapper has gone: what it was to run will not be reported."""
        for run in [run for run in self._runs.values() if run.caller is caller]:
            del self._runs[run.number]
            self._end(run)

    def forget(self) -> None:
        """Look at everything anew: after the store was cleaned or the configuration changed."""
        self._plans.clear()
        self._identities.forget()

    async def flush(self) -> None:
        """Wait until everything that has run is stored and written down."""
        while self._waiting:
            await self._stored.wait_notified(within_s=1.0)
        await self._in_thread(self._flush_latest)
        self._journal.write()

    def tick(self) -> None:
        """Upkeep, about once a second."""
        self._journal.write()

    # Plans

    def _plan(self, head: Head, frame: bytes) -> Plan | None:
        """What the request means; None when it is not of our world."""
        # The umask, which is left out, is for the outputs only.
        words = memoryview(frame)[frames.HEAD_BYTES + _UMASK_BYTES :]
        fingerprint = blake3.blake3(words).digest() + bytes((head.flags,))
        plan = self._plans.get(fingerprint)
        if plan is not None and plan.is_current():
            self._plans.move_to_end(fingerprint)
            return plan
        ask = frames.read_ask(head, frame)
        if (ask.namespace, *ask.root) != self._namespace:
            return None  # a container's paths are not ours
        plan = Plan(ask)
        self._plans[fingerprint] = plan
        if len(self._plans) > self._config.plans:
            self._plans.popitem(last=False)
        return plan

    async def _meet(self, plan: Plan, umask: int, caller: Caller) -> None:
        """Learn who the compiler is, then go on."""
        found = await self._in_thread(partial(self._identities.probe, plan.question))
        self._identities.remember(plan.question, found)
        plan.identify(found[0])
        plan.sets = None
        answer = self._decide(plan, umask, caller)
        if answer is not None:
            caller.reply(answer)

    # Answers

    def _decide(self, plan: Plan, umask: int, caller: Caller) -> bytes | None:
        if plan.bypass is not None:
            self._event(plan, Outcome.BYPASS, why=plan.bypass.reason.value, detail=plan.bypass.detail)
            return frames.PASS
        answer = self._lookup(plan, umask)
        if answer is not None:
            return answer
        if plan.request_key in self._running:
            self._start(self._follow(plan, umask, caller), caller)
            return None
        return self._run(plan, caller)

    def _lookup(self, plan: Plan, umask: int) -> bytes | None:
        """Find the result and put it in its place; None when there is none, or it cannot be placed."""
        now_s = self._clock.now_s()
        sets = plan.sets
        if sets is None:
            sets = plan.sets = [
                LiveSet(included, result_key, plan.root) for included, result_key in self._store.sets(plan.request_key)
            ]
        for live in sets:
            if not live.holds(self._table, root=plan.root, moment=partial(self._moment, plan), now_ns=int(now_s * 1e9)):
                continue
            answer = self._place(plan, live, umask, now_s)
            if answer is not None:
                if live is not sets[0]:
                    sets.remove(live)
                    sets.insert(0, live)
                return answer
        return None

    def _place(self, plan: Plan, live: LiveSet, umask: int, now_s: float) -> bytes | None:
        entry = self._store.result(live.result_key, now_s=now_s)
        if entry is None:
            return None
        result = entry.result
        if (result.stderr or result.stdout) and result.coloured != plan.terminal:
            return None
        try:
            self._store.place(
                entry, plan.targets, umask=umask, rules=partial(closure.replay_dependencies, root=plan.root)
            )
        except (OSError, LookupError) as error:
            # The compiler will say in its own words what is wrong with the place.
            _log.info("not placed", source=plan.source, error=str(error))
            return None
        stderr = closure.replay_dependencies(result.stderr, root=plan.root) if result.stderr else b""
        stdout = closure.replay_dependencies(result.stdout, root=plan.root) if result.stdout else b""
        self._event(plan, Outcome.LOCAL_HIT, saved_s=result.duration_s)
        self._latest[plan.source] = (plan, live, now_s)
        return frames.hit(0, stdout, stderr)

    def _moment(self, plan: Plan, live: LiveSet) -> str | None:
        found = []
        for path, _ in live.include_set.files:
            entry = self._table.entry(path if path.startswith("/") else f"{plan.root}/{path}")
            if entry is None:
                return None
            found.append((path, entry.traits))
        return moment_of(plan, found, today=today(self._clock.now_s()))

    def _run(self, plan: Plan, caller: Caller) -> bytes:
        """Ask the wrapper to compile and to report."""
        self._numbers += 1
        captured = capture(plan.argv[1:], plan.invocation, plan.cacheable, plan.identity, terminal=plan.terminal)
        run = _Run(self._numbers, plan, captured, caller, int(self._clock.now_s() * 1e9))
        self._runs[run.number] = run
        self._running.setdefault(plan.request_key, run)
        return frames.run(
            run.number,
            captured.arguments,
            memory_word=captured.memory_word,
            header_list=captured.source.value == "tree",
        )

    async def _follow(self, plan: Plan, umask: int, caller: Caller) -> None:
        """An equal compile runs: take its result when it is there, else run ourselves."""
        deadline_s = self._clock.monotonic_s() + self._config.follow_s
        while (first := self._running.get(plan.request_key)) is not None:
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0 or caller.gone:
                break
            if not await first.changed.wait_notified(within_s=min(left_s, _WAIT_EVERY_S)):
                caller.reply(frames.WAIT)
        if caller.gone:
            return
        plan.sets = None
        caller.reply(self._lookup(plan, umask) or self._run(plan, caller))

    # Results

    def _collect(self, run: _Run, report: Report) -> tuple[dict[str, bytes], dict[str, int]] | str:
        """Copies of the outputs, taken before the wrapper goes on; a text when that is impossible."""
        if not report.whole:
            return "its messages are too long"
        if self._waiting_bytes > _WAITING_BYTES_MAX:
            return "too many results wait to be stored"
        files: dict[str, bytes] = {}
        modes: dict[str, int] = {}
        for role, path in run.plan.targets.items():
            try:
                with Path(path).open("rb", buffering=0) as file:
                    found = os.fstat(file.fileno())
                    if not S_ISREG(found.st_mode) or found.st_size > self._config.object_bytes:
                        return f"{path} is no regular file, or over object_bytes"
                    files[role] = file.read()
            except OSError as error:
                return f"{path}: {error.strerror}"
            modes[role] = 0o777 if found.st_mode & 0o100 else 0o666
        return files, modes

    async def _keep(
        self, run: _Run, report: Report, outputs: "tuple[dict[str, bytes], dict[str, int]] | str", size: int
    ) -> None:
        plan = run.plan
        try:
            kept = Kept(why=outputs) if isinstance(outputs, str) else await self._store_outputs(run, report, *outputs)
            why = await self._in_thread(partial(self._record, run, kept, self._clock.now_s()))
            self._event(plan, Outcome.LOCAL_RUN, why=why, detail=kept.why, took_s=report.lasted_ns / 1e9)
        finally:
            self._waiting_bytes -= size
            self._waiting -= 1
            self._stored.notify()
            self._end(run)
        await self._in_thread(partial(self._store.clean_if_over, now_s=self._clock.now_s()))

    async def _store_outputs(self, run: _Run, report: Report, files: dict[str, bytes], modes: dict[str, int]) -> Kept:
        plan = run.plan
        work = partial(
            keep,
            plan,
            run.capture,
            report,
            files,
            modes,
            started_ns=run.started_ns,
            now_s=self._clock.now_s(),
            table=self._table,
            store=self._store,
        )
        kept = await self._in_thread(work)
        for entry in kept.entries:
            self._table.add(entry)
        if kept.include_set is not None:
            live = LiveSet(kept.include_set, kept.result_key, plan.root)
            others = [each for each in plan.sets or () if each.result_key != live.result_key]
            plan.sets = [live, *others][: self._config.include_sets]
        return kept

    # Explain

    def _record(self, run: _Run, kept: Kept, now_s: float) -> str:
        """Write down why this was no hit; the reason for statistics. In a thread."""
        plan = run.plan
        hit = self._latest.pop(plan.source, None)
        before = self._records.read(plan.source) if hit is None else _record_of(*hit, outcome=Outcome.LOCAL_HIT)
        after = _record_of(plan, None, now_s, outcome=Outcome.LOCAL_RUN, why=kept.why)
        if kept.include_set is not None:
            after = msgspec.structs.replace(after, files=dict(kept.include_set.files), key=kept.result_key)
        elif before is not None:
            after = msgspec.structs.replace(after, files=before.files)
        after = msgspec.structs.replace(after, diffs=diffs(before, after))
        self._records.write(after)
        return "not-stored" if kept.why else reason(after, before)

    def _flush_latest(self) -> None:
        """Write down the last hit of each source, where it differs from the record. In a thread."""
        while self._latest:
            source, (plan, live, at_s) = self._latest.popitem()
            known = self._records.read(source)
            if known is None or known.key != live.result_key:
                self._records.write(_record_of(plan, live, at_s, outcome=Outcome.LOCAL_HIT))

    # Small parts

    def _event(
        self,
        plan: Plan,
        outcome: Outcome,
        *,
        why: str = "",
        detail: str = "",
        saved_s: float = 0.0,
        took_s: float = 0.0,
    ) -> None:
        self._journal.add(
            Event(
                t=self._clock.now_s(),
                outcome=outcome,
                source=plan.source,
                why=why,
                detail=detail,
                saved_s=saved_s,
                took_s=took_s,
            )
        )

    def _end(self, run: _Run) -> None:
        if self._running.get(run.plan.request_key) is run:
            del self._running[run.plan.request_key]
        run.changed.notify()

    def _start(self, work: Coroutine[Any, Any, None], caller: Caller | None) -> None:
        self._group.create_task(self._bounded(work, caller))

    async def _bounded(self, work: Coroutine[Any, Any, None], caller: Caller | None) -> None:
        """A request's boundary: whatever happens, the wrapper gets an answer and the others go on."""
        try:
            await work
        except MalformedFrame:
            raise
        except Exception as error:  # noqa: BLE001 (the request boundary: the compiler answers instead of us)
            _log.warning("request failed", error=f"{type(error).__name__}: {error}")
            if caller is not None:
                caller.reply(frames.PASS)

    async def _in_thread(self, work: "Callable[[], T]") -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _record_of(plan: Plan, live: LiveSet | None, at_s: float, *, outcome: Outcome, why: str = "") -> Record:
    return Record(
        source=plan.source,
        output=plan.targets.get("object", ""),
        cwd=plan.cwd,
        root=plan.root,
        argv=plan.argv,
        at_s=at_s,
        outcome=outcome,
        why=why,
        key="" if live is None else live.result_key,
        request_key=plan.request_key,
        compiler=plan.identity.version,
        inputs=plan.inputs,
        files={} if live is None else dict(live.include_set.files),
    )
