"""The daemon's answer to one wrapper: here it is, compile it and tell me, or do it yourself.

A hit is answered within one call, without a task: parse (remembered), compare what was read with the disk, place the
object, reply. Everything else may wait: to learn who the compiler is, for an equal compile that runs already, for a
shared store or a worker. Life: ``running()`` is a context; leaving it stores what has run.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import blake3
import structlog

from corral.compile import closure, frames
from corral.compile.beside import Beside
from corral.compile.callers import Caller, Waiting
from corral.compile.capture import Source, capture
from corral.compile.compilers import Compilers
from corral.compile.elsewhere import Elsewhere, Found
from corral.compile.entries import ResultEntry
from corral.compile.files import FileTable
from corral.compile.frames import Head
from corral.compile.keeping import Keeper
from corral.compile.limits import CompileConfig
from corral.compile.model import CompilerIdentity, Outcome, Result
from corral.compile.plan import LiveSet, Plan, Roots, moment_now
from corral.compile.store import ResultStore
from corral.compile.telling import Teller
from corral.compile.under_way import Run, UnderWay
from corral.kernel.clock import Clock
from corral.kernel.concurrency import background
from corral.kernel.errors import CorralError

_log: Final = structlog.get_logger("compile")
_UMASK_BYTES: Final = 4


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
        self._roots = Roots(clock.monotonic_s)
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._under_way = UnderWay()
        self._waiting = Waiting()
        self._beside = Beside(config.jobs)
        self._compilers = Compilers(self._beside)
        self._keeper = Keeper(
            config,
            store=store,
            table=self._table,
            teller=teller,
            clock=clock,
            beside=self._beside,
            elsewhere=elsewhere,
        )
        self.used_s = clock.monotonic_s()
        """When the last request came."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve within this block. Cancellation: what has run is still stored, what runs is forgotten."""
        async with background(self._waiting.run(), name="waiting"), self._beside.running():
            yield
        self._teller.write_hits()
        self._teller.write_events()

    def configure(self, config: CompileConfig) -> None:
        """Take other limits; ``jobs`` stays."""
        self._config = config
        self._keeper.configure(config)

    def forget(self) -> None:
        """Look into the store anew: it was cleaned."""
        self._plans.clear()

    async def flush(self) -> None:
        """Wait until everything that has run is stored and written down."""
        await self._keeper.flush()

    def figures(self) -> dict[str, object]:
        """For the command line."""
        return {
            "running": self._under_way.reporting,
            "storing": len(self._keeper),
            "plans": len(self._plans),
            "files": len(self._table),
            "used_bytes": self._store.used_bytes,
            "unwritten": self._store.unwritten,
        }

    @property
    def busy(self) -> bool:
        """True while something runs or waits to be stored."""
        return bool(len(self._under_way) or self._under_way.reporting or len(self._keeper))

    # Requests

    def ask(self, head: Head, frame: bytes, caller: Caller) -> bytes | None:
        """The answer to a compile; None when it comes later. Raises MalformedFrame."""
        self.used_s = self._clock.monotonic_s()
        plan = self._plan(head, frame)
        if plan is None:
            return frames.PASS
        umask = int.from_bytes(frame[frames.HEAD_BYTES : frames.HEAD_BYTES + _UMASK_BYTES], "little")
        if plan.bypass is None:
            identity = self._compilers.known(plan.question)
            if identity is None:
                self._beside.start(self._meet(plan, umask, caller), failed=partial(caller.reply, frames.PASS))
                return None
            self._identify(plan, identity)
        return self._decide(plan, umask, caller)

    def report(self, head: Head, frame: bytes) -> bytes:
        """Take what a run left. Raises MalformedFrame."""
        report = frames.read_report(head, frame)
        run = self._under_way.reported(report.run)
        if run is None:
            return frames.DONE
        if report.status:
            self._under_way.end(run)
            self._teller.event(run.plan, Outcome.FAILED, took_s=report.lasted_ns / 1e9)
        else:
            self._keeper.ran_here(run, report, ended=partial(self._under_way.end, run))
        return frames.DONE

    def left(self, caller: Caller) -> None:
        """A wrapper has gone: what it was to run will not be reported."""
        self._under_way.left(caller)

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
        with self._waiting.kept(caller):
            identity = await self._compilers.meet(plan.question)
        self._identify(plan, identity)
        answer = self._decide(plan, umask, caller)
        if answer is not None:
            caller.reply(answer)

    def _identify(self, plan: Plan, met: CompilerIdentity) -> None:
        if plan.met is not met:
            elsewhere = self._elsewhere
            plan.identify(met, met if elsewhere is None else elsewhere.identity_of(plan, met))

    # Answers

    def _decide(self, plan: Plan, umask: int, caller: Caller, *, until_s: float | None = None) -> bytes | None:
        """The answer, None when it comes later. ``until_s``: from when on (steady time) no equal one is waited for."""
        if plan.bypass is not None:
            self._teller.event(plan, Outcome.BYPASS, why=plan.bypass.reason.value, detail=plan.bypass.detail)
            return frames.PASS
        live = self._holding(plan)
        answer = None if live is None else self._hit(plan, live, umask)
        if answer is not None:
            return answer
        later = partial(caller.reply, frames.PASS)
        first = self._under_way.first(plan.request_key)
        if first is not None:
            now_s = self._clock.monotonic_s()
            until_s = now_s + self._config.follow_s if until_s is None else until_s
            if until_s <= now_s:
                return self._at_home(plan, umask, caller)
            self._beside.start(self._follow(first, plan, umask, caller, until_s), failed=later)
            return None
        if self._elsewhere is not None:
            run = self._under_way.elsewhere(plan, caller)
            self._beside.start(self._look_elsewhere(self._elsewhere, run, live, umask), failed=later)
            return None
        return self._at_home(plan, umask, caller)

    def _holding(self, plan: Plan, sets: list[LiveSet] | None = None) -> LiveSet | None:
        """The first set that a compile now would read; of those in the store unless ``sets`` are others."""
        if sets is None:
            if plan.sets is None:
                plan.sets = plan.live(self._store.sets(plan.request_key))
            sets = plan.sets
        now_s = self._clock.now_s()
        moment = partial(moment_now, plan, self._table, now_s=now_s)
        now_ns = int(now_s * 1e9)
        for live in sets:
            if live.holds(self._table, plan.root, moment=moment, now_ns=now_ns):
                if live is not sets[0]:
                    sets.remove(live)
                    sets.insert(0, live)
                return live
        return None

    def _hit(self, plan: Plan, live: LiveSet, umask: int) -> bytes | None:
        """Find the result and put it in its place; None when there is none, or it cannot be placed."""
        entry = self._store.result(live.result_key, now_s=self._clock.now_s())
        answer = None if entry is None else self._place(plan, entry, umask)
        if entry is not None and answer is not None:
            self._teller.hit(plan, live, Outcome.LOCAL_HIT, entry.result)
        return answer

    def _place(self, plan: Plan, entry: ResultEntry, umask: int) -> bytes | None:
        result = entry.result
        if (result.stderr or result.stdout) and not _fits(result, terminal=plan.terminal):
            return None
        here = partial(closure.replay_dependencies, root=plan.root)
        try:
            self._store.place(entry, plan.targets, umask=umask, rules=here)
        except (OSError, LookupError) as error:
            # The compiler will say in its own words what is wrong with the place.
            _log.info("not placed", source=plan.source, error=str(error))
            return None
        return frames.hit(0, here(result.stdout), here(result.stderr))

    def _at_home(self, plan: Plan, umask: int, caller: Caller, *, refused: str = "") -> bytes:
        """The compiler of this machine shall do it, unless it is not the one that was wanted, and has done it."""
        home = plan.at_home()
        live = None if home is plan else self._holding(home)
        answer = None if live is None else self._hit(home, live, umask)
        return answer or self._run(home, caller, refused)

    def _run(self, plan: Plan, caller: Caller, refused: str) -> bytes:
        """Ask the wrapper to compile and to report."""
        captured = capture(plan.argv[1:], plan.invocation, plan.cacheable, plan.identity, terminal=plan.terminal)
        now_ns = int(self._clock.now_s() * 1e9)
        run = self._under_way.here(plan, caller, captured, started_ns=now_ns, refused=refused)
        listing = captured.source is Source.TREE
        return frames.run(run.number, captured.arguments, memory_word=captured.memory_word, header_list=listing)

    async def _follow(self, first: Run, plan: Plan, umask: int, caller: Caller, until_s: float) -> None:
        """An equal compile runs: decide again when its result is there, which may be of other headers."""
        with self._waiting.kept(caller):
            if self._under_way.first(plan.request_key) is first:  # else it has ended before we came here
                await first.changed.wait_notified(within_s=until_s - self._clock.monotonic_s())
        if caller.gone:
            return
        plan.sets = None
        answer = self._decide(plan, umask, caller, until_s=until_s)
        if answer is not None:
            caller.reply(answer)

    # Elsewhere

    async def _look_elsewhere(self, elsewhere: Elsewhere, run: Run, live: LiveSet | None, umask: int) -> None:
        """A shared store, a worker; when neither helps, the wrapper compiles. Equal compiles wait meanwhile."""
        plan, caller = run.plan, run.caller
        found: Found | None = None
        refused = elsewhere.refusal(plan)
        try:
            with self._waiting.kept(caller):
                found = await elsewhere.find(plan, live, partial(self._holding, plan), self._table)
        except CorralError as error:
            refused = error.message
            text = f"corral: not compiled by the fleet ({refused}); compiling here"
            self._waiting.note(caller, text, now_s=self._clock.monotonic_s())
        finally:
            if found is None or found.entry is None:
                self._under_way.end(run)
        answer = None if found is None else self._taken(run, found, umask)
        if not caller.gone:
            caller.reply(answer or self._at_home(plan, umask, caller, refused=refused))

    def _taken(self, run: Run, found: Found, umask: int) -> bytes | None:
        """Place what came from elsewhere; it is kept once the build has gone on."""
        plan = run.plan
        if found.note:
            self._waiting.note(run.caller, found.note, now_s=self._clock.monotonic_s())
        if found.entry is None:  # the compiler said no, and would say no here
            self._teller.event(plan, Outcome.FAILED)
            return frames.hit(found.status, found.stdout, found.stderr)
        answer = self._place(plan, found.entry, umask)
        self._keeper.ran_elsewhere(plan, found, ended=partial(self._under_way.end, run))
        return answer


def _fits(result: Result, *, terminal: bool) -> bool:
    """Whether its messages look as they should. A worker prints without colours, and is not asked again for them."""
    return result.coloured == terminal or (terminal and result.origin != "local")
