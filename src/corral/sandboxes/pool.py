"""The asyncio shell of the pools: carries out what ``sandboxes.machine`` decides.

A warm hand-out never leaves the current turn of the event loop. ``plan`` runs once per turn in which something
happened, and when the machine says that time alone will matter. What it decides about one sandbox is carried out by
``lives``.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, assert_never

from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal, finish
from corral.kernel.errors import CorralError, InvalidSpec, PoolExhausted, SandboxFailed
from corral.sandboxes.lives import Lives
from corral.sandboxes.machine import PoolMachine
from corral.sandboxes.pool_model import (
    Asked,
    Closed,
    Effect,
    Event,
    Forget,
    Freeze,
    GaveUp,
    HandOut,
    Pinned,
    PoolConfig,
    PoolCount,
    PoolKey,
    RefusalKind,
    Refuse,
    Released,
    Reset,
    Start,
    Stop,
)
from corral.sandboxes.ports import Runtime
from corral.sandboxes.sandbox import Sandbox

_CLOSE_WITHIN_S: Final = 30.0
_LATENCIES_KEPT: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """What the pools have done since they opened, and what they hold now.

    Attributes:
        hits: hand-outs that were warm at once.
        cold: hand-outs that had to wait, by reason (``Cold``).
        claim_p50_s, claim_p99_s: from asking to holding, over the last few thousand claims.
        stopped: ended sandboxes, by why.
        frozen: sandboxes that became snapshots.
        thawed: sandboxes that went on from one.
        forgotten: snapshots that nobody went on from, by why.
    """

    claims: int
    hits: int
    reused: int
    cold: Mapping[str, int]
    refused: Mapping[str, int]
    started: int
    start_failures: int
    stopped: Mapping[str, int]
    frozen: int
    thawed: int
    forgotten: Mapping[str, int]
    claim_p50_s: float
    claim_p99_s: float
    waiting: int
    pools: tuple[PoolCount, ...]


class Lease:
    """The right to use one sandbox, until ``release``. ``async with`` releases it.

    Attributes:
        sandbox: what was leased; use it no more after the release.
        warm: it was there at once.
        reused: somebody (of the same tenant) used it before; it was emptied since.
        cold_reason: why it was not there at once, one phrase; "" when warm.
        acquire_s: how long the claim took.
    """

    __slots__ = ("_pools", "_released", "_ticket", "acquire_s", "cold_reason", "reused", "sandbox", "warm")

    def __init__(self, pools: "Pools", effect: HandOut, sandbox: Sandbox, acquire_s: float) -> None:
        self.sandbox = sandbox
        self.warm = effect.cold is None
        self.reused = effect.reused
        self.cold_reason = "" if effect.cold is None else effect.cold.value
        self.acquire_s = acquire_s
        self._pools = pools
        self._ticket = effect.ticket
        self._released = False

    def release_nowait(self, *, soiled: bool = False) -> None:
        """Give it back: emptied and kept, or destroyed when ``soiled`` or when the sandbox says so. Idempotent."""
        if not self._released:
            self._released = True
            self._pools.take_back(self.sandbox, self._ticket, soiled=soiled)

    async def release(self, *, soiled: bool = False) -> None:
        """As ``release_nowait``; does not wait for the reset. Cancellation: it is given back."""
        self.release_nowait(soiled=soiled)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release_nowait(soiled=error is not None)


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[HandOut]
    asked_s: float


class Pools:
    """All pools of one worker. Life cycle: ``async with Pools(...)``; leaving it stops all, in bounded time."""

    def __init__(
        self, runtimes: Mapping[str, Runtime], config: PoolConfig, *, clock: Clock, new_id: Callable[[], str]
    ) -> None:
        self.config = config
        self._runtimes = dict(runtimes)
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._lives = Lives(self._runtimes, self._tasks, self._report)
        self._machine = PoolMachine(config, new_id, freezing=self._lives.freezing)
        self._waiting: dict[int, _Waiting] = {}
        self._last_ticket = 0
        self._changed = Signal()
        self._plan_queued = False
        self._timer: asyncio.TimerHandle | None = None
        self._hits = self._claims = self._reused = 0
        self._cold: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._stopped: Counter[str] = Counter()
        self._forgotten: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await finish(self._close(), within_s=_CLOSE_WITHIN_S)
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    # ---- for the users of sandboxes ----

    async def acquire(self, key: PoolKey, *, within_s: float | None = None) -> Lease:
        """Lease a sandbox; at once when a warm one is there, else first come first served.

        Raises:
            InvalidSpec: this worker has no such runtime, or the runtime cannot give what the key asks for.
            PoolExhausted: none became free within ``within_s`` (default: ``acquire_within_s``), or the line is full.
            SandboxFailed: sandboxes of this key do not start; the message holds the runtime's words.
        Cancellation: nothing is leased.
        """
        if key.runtime not in self._runtimes:
            known = ", ".join(sorted(self._runtimes))
            raise InvalidSpec(f'runtime: this worker does not run "{key.runtime}"; it runs {known}', field="runtime")
        asked_s = self._clock.monotonic_s()
        self._last_ticket = ticket = self._last_ticket + 1
        effects = self._machine.step(Asked(ticket, key), now_s=asked_s)
        self._plan_soon()
        if effects:
            return self._answer(effects[0], asked_s)
        return await self._wait_for(ticket, asked_s, self.config.acquire_within_s if within_s is None else within_s)

    def pin(self, key: PoolKey, *, keep: bool = True) -> None:
        """Keep ``min`` and ``warm`` sandboxes of this key although nobody asks; or no longer."""
        self._report(Pinned(key, keep))

    async def wait_idle(self, key: PoolKey, count: int, *, within_s: float) -> bool:
        """True once ``count`` sandboxes of the key are warm and idle; False when ``within_s`` passed first."""
        deadline_s = self._clock.monotonic_s() + within_s
        while not any(pool.key == key and pool.idle >= count for pool in self.counts()):
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                return False
            await self._changed.wait_notified(within_s=left_s)
        return True

    def counts(self) -> tuple[PoolCount, ...]:
        """How many sandboxes each key has, by phase."""
        return self._machine.state.counts(now_s=self._clock.monotonic_s())

    def statistics(self) -> PoolStatistics:
        """See ``PoolStatistics``."""
        ordered = sorted(self._latencies)
        return PoolStatistics(
            claims=self._claims,
            hits=self._hits,
            reused=self._reused,
            cold=dict(self._cold),
            refused=dict(self._refused),
            started=self._lives.started,
            start_failures=self._lives.start_failures,
            stopped=dict(self._stopped),
            frozen=self._lives.frozen,
            thawed=self._lives.thawed,
            forgotten=dict(self._forgotten),
            claim_p50_s=ordered[len(ordered) // 2] if ordered else 0.0,
            claim_p99_s=ordered[len(ordered) * 99 // 100] if ordered else 0.0,
            waiting=len(self._machine.state.waiting),
            pools=self.counts(),
        )

    def take_back(self, sandbox: Sandbox, ticket: int, *, soiled: bool) -> None:
        """For ``Lease``: the holder of ``ticket`` is done."""
        self._report(Released(sandbox.spec.id, ticket, soiled or sandbox.soiled))

    # ---- waiting ----

    async def _wait_for(self, ticket: int, asked_s: float, within_s: float) -> Lease:
        waiting = _Waiting(asyncio.get_running_loop().create_future(), asked_s)
        self._waiting[ticket] = waiting
        try:
            async with asyncio.timeout(within_s):
                effect = await waiting.future
        except TimeoutError as error:
            if _has_result(waiting.future):  # both in one turn of the loop: the sandbox is ours
                return self._answer(waiting.future.result(), asked_s)
            self._refused["deadline"] += 1
            raise PoolExhausted(
                f"no sandbox became free within {within_s:g} s",
                cure="raise the pool's max or tenant_max, or ask for less at once",
            ) from error
        except asyncio.CancelledError:
            if _has_result(waiting.future):
                handed = waiting.future.result()
                self._report(Released(handed.id, ticket, soiled=False))
            raise
        finally:
            del self._waiting[ticket]
            self._machine.step(GaveUp(ticket), now_s=self._clock.monotonic_s())  # nothing, when it was served
        return self._answer(effect, asked_s)

    def _answer(self, effect: Effect, asked_s: float) -> Lease:
        if isinstance(effect, Refuse):
            raise self._refusal(effect)
        assert isinstance(effect, HandOut)
        sandbox = self._lives.sandbox(effect.id)
        acquire_s = self._clock.monotonic_s() - asked_s
        self._claims += 1
        self._reused += effect.reused
        self._latencies.append(acquire_s)
        if effect.cold is None:
            self._hits += 1
        else:
            self._cold[effect.cold.value] += 1
        return Lease(self, effect, sandbox, acquire_s)

    def _refusal(self, effect: Refuse) -> CorralError:
        self._refused[effect.kind.value] += 1
        match effect.kind:
            case RefusalKind.LINE_FULL:
                return PoolExhausted(f"{self.config.waiting_max} others wait for a sandbox already (waiting_max)")
            case RefusalKind.CLOSED:
                return PoolExhausted("this worker is closing its sandboxes")
            case RefusalKind.START_FAILED:
                return _copy(effect.cause)
            case _:
                assert_never(effect.kind)

    # ---- carrying out ----

    def _report(self, event: Event) -> None:
        self._carry_out(self._machine.step(event, now_s=self._clock.monotonic_s()))
        self._plan_soon()

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Start():
                    self._lives.begin(effect)
                case Stop():
                    self._stopped[effect.why] += 1
                    self._lives.end(effect.id)
                case Freeze():
                    self._lives.freeze(effect.id)
                case Forget():
                    self._forgotten[effect.why] += 1
                    self._lives.forget(effect.id)
                case Reset():
                    self._lives.make_new(effect.id)
                case HandOut() | Refuse():
                    self._tell(effect)
                case _:
                    assert_never(effect)

    def _plan_soon(self) -> None:
        self._changed.notify()
        if not self._plan_queued:
            self._plan_queued = True
            asyncio.get_running_loop().call_soon(self._plan)

    def _plan(self) -> None:
        self._plan_queued = False
        now_s = self._clock.monotonic_s()
        self._carry_out(self._machine.plan(now_s=now_s))
        due_s = self._machine.due_s(now_s=now_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None:
            # a little late, so that the instant has surely passed whatever the clock's grain
            self._timer = asyncio.get_running_loop().call_later(due_s - now_s + 0.001, self._plan)

    def _tell(self, effect: HandOut | Refuse) -> None:
        waiting = self._waiting.get(effect.ticket)
        if waiting is not None and not waiting.future.done():
            if isinstance(effect, HandOut):
                waiting.future.set_result(effect)
            else:
                waiting.future.set_exception(self._refusal(effect))
        elif isinstance(effect, HandOut):  # its future was cancelled in this very turn
            self._report(Released(effect.id, effect.ticket, soiled=False))

    async def _close(self) -> None:
        self._report(Closed())
        while self._lives:
            await self._changed.wait_notified(within_s=1.0)
        if self._timer is not None:
            self._timer.cancel()


def _has_result(future: asyncio.Future[HandOut]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _copy(cause: Exception | None) -> CorralError:
    """One failure told to many: each gets an exception of his own."""
    if isinstance(cause, InvalidSpec):
        return InvalidSpec(cause.message, cure=cause.cure, mistakes=cause.mistakes, **cause.context)
    cure = cause.cure if isinstance(cause, CorralError) else ""
    return SandboxFailed(str(cause), cure=cure)
