"""The daemon's answer to one wrapper: here it is, compile it and tell me, or do it yourself.

A hit is answered within one call, without a task: parse (remembered), compare what was read with the disk, place the
object, reply. Everything else may wait: to learn who the compiler is, for an equal compile that runs already, for a
shared store or a worker. Life: ``running()`` is a context; leaving it stores what has run.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import blake3
import structlog

from corral.compile import closure, frames
from corral.compile.capture import Capture, Source, capture
from corral.compile.elsewhere import Elsewhere, Found
from corral.compile.entries import ResultEntry
from corral.compile.files import FileTable
from corral.compile.frames import Head, Report
from corral.compile.identity import Identities, Question
from corral.compile.limits import CompileConfig
from corral.compile.model import CompilerIdentity, Outcome
from corral.compile.plan import LiveSet, Plan, Roots
from corral.compile.store import ResultStore
from corral.compile.storing import Kept, Outputs, collect, keep, moment_now
from corral.compile.telling import Teller
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CorralError

T = TypeVar("T")
_log: Final = structlog.get_logger("compile")
_WAIT_EVERY_S: Final = 3.0
_NOTE_EVERY_S: Final = 30.0
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
    """A compile under way: by its wrapper (``capture`` is how), or elsewhere."""

    __slots__ = ("caller", "capture", "changed", "number", "plan", "started_ns")

    def __init__(self, plan: Plan, caller: Caller, number: int, captured: Capture | None, started_ns: int) -> None:
        self.plan = plan
        self.caller = caller
        self.number = number
        self.capture = captured
        self.started_ns = started_ns
        self.changed = Signal()


class CompileService:
    """One per user. Not safe for threads; work that blocks goes to its own few."""

    def __init__(
        self,
        config: CompileConfig,
        *,
        store: ResultStore,
        teller: Teller,
        clock: Clock,
        world: tuple[int, int, int],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._teller = teller
        self._clock = clock
        self._world = world
        self._elsewhere = elsewhere
        self._table = FileTable(closure.traits, clock.now_s)
        self._identities = Identities()
        self._roots = Roots(clock.monotonic_s)
        self._probing: dict[Question, Signal] = {}
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._runs: dict[int, _Run] = {}
        self._running: dict[str, _Run] = {}
        self._numbers = 0
        self._waiting = 0
        self._waiting_bytes = 0
        self._stored = Signal()
        self._noted_s = -_NOTE_EVERY_S
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
            await self._in_thread(self._teller.write_hits)
        self._teller.write_events()

    def configure(self, config: CompileConfig) -> None:
        """Take other limits; ``jobs`` stays."""
        self._config = config

    def forget(self) -> None:
        """Look at everything anew: after the store was cleaned."""
        self._plans.clear()
        self._identities.forget()

    async def flush(self) -> None:
        """Wait until everything that has run is stored and written down."""
        while self._waiting:
            await self._stored.wait_notified(within_s=1.0)
        await self._in_thread(self._teller.write_hits)
        self._teller.write_events()

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

    @property
    def busy(self) -> bool:
        """True while something runs or waits to be stored."""
        return bool(self._runs or self._running or self._waiting)

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
            if plan.identity is not identity:
                plan.identify(identity)
        return self._decide(plan, umask, caller)

    def report(self, head: Head, frame: bytes) -> bytes:
        """Take what a run left. Raises MalformedFrame."""
        report = frames.read_report(head, frame)
        run = self._runs.pop(report.run, None)
        if run is None or run.capture is None:
            return frames.DONE
        if report.status:
            self._end(run)
            self._teller.event(run.plan, Outcome.FAILED, took_s=report.lasted_ns / 1e9)
            return frames.DONE
        full = self._waiting_bytes > _WAITING_BYTES_MAX
        outputs = collect(run.plan, report, object_bytes=0 if full else self._config.object_bytes)
        size = 0 if isinstance(outputs, str) else sum(map(len, outputs.files.values()))
        self._waiting_bytes += size
        self._waiting += 1
        self._start(self._keep(run, run.capture, report, outputs, size), None)
        return frames.DONE

    def left(self, caller: Caller) -> None:
        """A wrapper has gone: what it was to run will not be reported."""
        for run in [run for run in self._runs.values() if run.caller is caller]:
            del self._runs[run.number]
            self._end(run)

    def _plan(self, head: Head, frame: bytes) -> Plan | None:
        """What the request means; None when it is not of our world."""
        # The umask, which is left out, is for the outputs only.
        words = memoryview(frame)[frames.HEAD_BYTES + _UMASK_BYTES :]
        fingerprint = blake3.blake3(words).digest() + bytes((head.flags,))
        plan = self._plans.get(fingerprint)
        if plan is not None and plan.is_current(self._roots.of(plan.cwd)):
            self._plans.move_to_end(fingerprint)
            return plan
        ask = frames.read_ask(head, frame)
        if (ask.namespace, *ask.root) != self._world:
            return None  # a container's paths are not ours
        plan = Plan(ask, self._roots.of(ask.cwd))
        self._plans[fingerprint] = plan
        if len(self._plans) > self._config.plans:
            self._plans.popitem(last=False)
        return plan

    async def _meet(self, plan: Plan, umask: int, caller: Caller) -> None:
        """Learn who the compiler is, then go on."""
        while (probing := self._probing.get(plan.question)) is not None:  # the others of a parallel build
            if not await probing.wait_notified(within_s=_WAIT_EVERY_S):
                caller.reply(frames.WAIT)
        identity = self._identities.known(plan.question)
        if identity is None:
            identity = await self._while_waiting(self._probe(plan.question), caller)
        if plan.identity is not identity:
            plan.identify(identity)
        answer = self._decide(plan, umask, caller)
        if answer is not None:
            caller.reply(answer)

    async def _probe(self, asked: Question) -> CompilerIdentity:
        probing = self._probing[asked] = Signal()
        try:
            found = await self._in_thread(partial(self._identities.probe, asked))
            self._identities.remember(asked, found)
        finally:
            del self._probing[asked]
            probing.notify()
        return found[0]

    # Answers

    def _decide(self, plan: Plan, umask: int, caller: Caller) -> bytes | None:
        if plan.bypass is not None:
            self._teller.event(plan, Outcome.BYPASS, why=plan.bypass.reason.value, detail=plan.bypass.detail)
            return frames.PASS
        answer = self._lookup(plan, umask)
        if answer is not None:
            return answer
        if plan.request_key in self._running:
            self._start(self._follow(plan, umask, caller), caller)
            return None
        if self._elsewhere is not None:
            self._start(self._look_elsewhere(plan, umask, caller), caller)
            return None
        return self._run(plan, caller)

    def _lookup(self, plan: Plan, umask: int) -> bytes | None:
        """Find the result and put it in its place; None when there is none, or it cannot be placed."""
        now_s = self._clock.now_s()
        sets = plan.sets
        if sets is None:
            sets = plan.sets = plan.live(self._store.sets(plan.request_key))
        live = self._holding(plan, sets)
        if live is None:
            return None
        entry = self._store.result(live.result_key, now_s=now_s)
        if entry is None:
            return None
        if live is not sets[0]:
            sets.remove(live)
            sets.insert(0, live)
        return self._place(plan, live, entry, umask, Outcome.LOCAL_HIT)

    def _holding(self, plan: Plan, sets: list[LiveSet]) -> LiveSet | None:
        """The first set that a compile now would read."""
        now_s = self._clock.now_s()
        moment = partial(moment_now, plan, self._table, now_s=now_s)
        now_ns = int(now_s * 1e9)
        return next((each for each in sets if each.holds(self._table, plan.root, moment=moment, now_ns=now_ns)), None)

    def _place(self, plan: Plan, live: LiveSet, entry: ResultEntry, umask: int, outcome: Outcome) -> bytes | None:
        result = entry.result
        if (result.stderr or result.stdout) and result.coloured != plan.terminal:
            return None
        here = partial(closure.replay_dependencies, root=plan.root)
        try:
            self._store.place(entry, plan.targets, umask=umask, rules=here)
        except (OSError, LookupError) as error:
            # The compiler will say in its own words what is wrong with the place.
            _log.info("not placed", source=plan.source, error=str(error))
            return None
        if outcome is not Outcome.REMOTE_RUN:  # that was a miss, and is told as such
            self._teller.hit(plan, live, outcome, saved_s=result.duration_s)
        return frames.hit(0, here(result.stdout), here(result.stderr))

    def _run(self, plan: Plan, caller: Caller) -> bytes:
        """Ask the wrapper to compile and to report."""
        self._numbers += 1
        captured = capture(plan.argv[1:], plan.invocation, plan.cacheable, plan.identity, terminal=plan.terminal)
        run = _Run(plan, caller, self._numbers, captured, int(self._clock.now_s() * 1e9))
        self._runs[run.number] = run
        self._running.setdefault(plan.request_key, run)
        listing = captured.source is Source.TREE
        return frames.run(run.number, captured.arguments, memory_word=captured.memory_word, header_list=listing)

    async def _follow(self, plan: Plan, umask: int, caller: Caller) -> None:
        """An equal compile runs: take its result when it is there, else run ourselves."""
        deadline_s = self._clock.monotonic_s() + self._config.follow_s
        while (first := self._running.get(plan.request_key)) is not None:
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0 or caller.gone:
                break
            if not await first.changed.wait_notified(within_s=min(left_s, _WAIT_EVERY_S)):
                caller.reply(frames.WAIT)
        if not caller.gone:
            plan.sets = None
            caller.reply(self._lookup(plan, umask) or self._run(plan, caller))

    # Elsewhere

    async def _look_elsewhere(self, plan: Plan, umask: int, caller: Caller) -> None:
        """A shared store, a worker; when neither helps, the wrapper compiles. Equal compiles wait meanwhile."""
        assert self._elsewhere is not None
        run = _Run(plan, caller, 0, None, 0)
        self._running[plan.request_key] = run
        answer: bytes | None = None
        try:
            found = await self._while_waiting(
                self._elsewhere.find(plan, partial(self._holding, plan), self._table), caller
            )
            if found is not None:
                answer = await self._take(plan, found, umask, caller)
        except CorralError as error:
            self._note(caller, f"corral: not compiled by the fleet ({error.message}); compiling here")
        finally:
            self._end(run)
        if not caller.gone:
            caller.reply(answer or self._run(plan, caller))

    async def _while_waiting(self, work: Coroutine[Any, Any, T], caller: Caller) -> T:
        """Tell the wrapper that we live, as long as ``work`` lasts."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_ended(work))
            while not (await asyncio.wait({task}, timeout=_WAIT_EVERY_S))[0]:
                caller.reply(frames.WAIT)
        ended = task.result()
        if isinstance(ended, CorralError):
            raise ended
        return ended

    async def _take(self, plan: Plan, found: Found, umask: int, caller: Caller) -> bytes | None:
        """Place what came from elsewhere, and keep it here."""
        if found.note:
            self._note(caller, found.note)
        if found.entry is None:  # the compiler said no, and would say no here
            self._teller.event(plan, Outcome.FAILED)
            return frames.hit(found.status, found.stdout, found.stderr)
        await self._in_thread(partial(self._store.adopt, plan.request_key, found.include_set, found.entry))
        live = LiveSet(found.include_set, found.entry.key, plan.root)
        plan.remember(live, at_most=self._config.include_sets)
        if found.outcome is Outcome.REMOTE_RUN:
            tell = partial(
                self._teller.ran,
                plan,
                found.outcome,
                include_set=found.include_set,
                result_key=found.entry.key,
                worker=found.worker,
            )
            why = await self._in_thread(tell)
            self._teller.event(plan, found.outcome, why=why, took_s=found.entry.result.duration_s)
        return self._place(plan, live, found.entry, umask, found.outcome)

    def _note(self, caller: Caller, text: str) -> None:
        """One line for the user, not for each of a thousand compiles."""
        now_s = self._clock.monotonic_s()
        if now_s - self._noted_s >= _NOTE_EVERY_S:
            self._noted_s = now_s
            caller.reply(frames.note(text))

    # Results

    async def _keep(self, run: _Run, captured: Capture, report: Report, outputs: "Outputs | str", size: int) -> None:
        plan = run.plan
        try:
            kept = (
                Kept(why=outputs)
                if isinstance(outputs, str)
                else await self._store_outputs(run, captured, report, outputs)
            )
            tell = partial(
                self._teller.ran,
                plan,
                Outcome.LOCAL_RUN,
                include_set=kept.include_set,
                result_key=kept.result_key,
                not_kept=kept.why,
            )
            why = await self._in_thread(tell)
            self._teller.event(plan, Outcome.LOCAL_RUN, why=why, detail=kept.why, took_s=report.lasted_ns / 1e9)
        finally:
            self._waiting_bytes -= size
            self._waiting -= 1
            self._stored.notify()
            self._end(run)
        await self._in_thread(partial(self._store.clean_if_over, now_s=self._clock.now_s()))

    async def _store_outputs(self, run: _Run, captured: Capture, report: Report, outputs: Outputs) -> Kept:
        plan = run.plan
        now_s = self._clock.now_s()
        kept = await self._in_thread(
            partial(
                keep,
                plan,
                captured,
                report,
                outputs,
                started_ns=run.started_ns,
                now_s=now_s,
                table=self._table,
                store=self._store,
            )
        )
        for entry in kept.entries:
            self._table.add(entry)
        if kept.include_set is not None:
            plan.remember(LiveSet(kept.include_set, kept.result_key, plan.root), at_most=self._config.include_sets)
            if self._elsewhere is not None:
                self._start(self._share(plan.request_key, kept.result_key), None)
        return kept

    async def _share(self, request_key: str, result_key: str) -> None:
        """Give a new result to the shared store."""
        assert self._elsewhere is not None
        now_s = self._clock.now_s()
        try:
            entry = await self._in_thread(partial(self._store.result, result_key, now_s=now_s))
            if entry is not None:
                await self._elsewhere.share(request_key, self._store.sets(request_key), entry)
        except CorralError as error:
            _log.warning("not shared", error=error.message)

    # Small parts

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
        except Exception as error:  # noqa: BLE001 (the request boundary: the compiler answers instead of us)
            _log.warning("request failed", error=f"{type(error).__name__}: {error}")
            if caller is not None:
                caller.reply(frames.PASS)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _ended(work: Coroutine[Any, Any, T]) -> "T | CorralError":
    """How ``work`` ended, as a value: a TaskGroup would wrap its error into a group."""
    try:
        return await work
    except CorralError as error:
        return error
