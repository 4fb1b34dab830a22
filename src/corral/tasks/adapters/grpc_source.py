"""The worker's end of the queue's protocol: claims, renewals and reports over the link's session.

A call costs the scheduler more than what it carries, so calls are few. Reports go together: those that come while a
call is under way, or a moment after one that carried several, wait for the next; and a claim goes with reports that
are about to leave.
Every call may be repeated, so a report is sent until it is answered; what it does, it does once.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import grpc
import msgspec
import structlog

from corral.fleet.adapters.grpc_link import LinkSession, SchedulerLink
from corral.fleet.adapters.messages import ref_from_message, ref_to_message
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CorralError, SchedulerUnavailable, TooLarge, Unauthenticated
from corral.tasks.adapters.messages import claim_from_message, report_to_message
from corral.tasks.model import RunReport
from corral.tasks.ports import Claim, RunRef
from corral.wire.errors import error_of_code, error_of_rpc
from corral.wire.v1 import fleet_pb2
from corral.wire.v1.fleet_pb2_grpc import QueueStub

T = TypeVar("T")
_BATCH_BYTES: Final = 4 * 1024 * 1024
_logger = structlog.get_logger("corral.tasks.source")


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker speaks with the queue.

    Attributes:
        answer_s: how long an answer may take, beyond the wait that a claim asks for.
        retry_min_s, retry_max_s: pauses before a report is sent again; they double, with jitter.
        batch_reports_max: how many reports go in one call.
        report_gap_s: after a call with several reports the next one begins so much later, for each pair of them: they
            come fast, and more of them go together. One report alone holds up nothing.
        report_gap_max_s: the longest such pause.
    """

    answer_s: float = 10.0
    retry_min_s: float = 0.05
    retry_max_s: float = 2.0
    batch_reports_max: int = 256
    report_gap_s: float = 0.01
    report_gap_max_s: float = 0.03


@dataclass(slots=True, eq=False)
class _Waiting:
    ref: RunRef
    message: fleet_pb2.RunReport
    done: bool = False
    error: CorralError | None = None
    answered: Signal = field(default_factory=Signal)

    def answer(self, error: CorralError | None) -> None:
        """The queue has heard it; ``error`` is what it has against it."""
        self.error, self.done = error, True
        self.answered.notify()


@dataclass(slots=True, eq=False)
class _Wish:
    """A claim that would like to go with reports; ``claims`` is None while none has taken it along."""

    slots: int
    taken: bool = False
    claims: Sequence[Claim] | None = None
    answered: Signal = field(default_factory=Signal)

    def answer(self, claims: Sequence[Claim]) -> None:
        self.claims = claims
        self.answered.notify()


@dataclass(slots=True)
class _Outbox:
    """Reports that wait; whoever holds the turn sends them, its own with them, at ``next_s`` or before with a claim."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    next_s: float = float("-inf")
    wish: _Wish | None = None
    wished: Signal = field(default_factory=Signal)

    def take_wish(self) -> _Wish | None:
        wish, self.wish = self.wish, None
        if wish is not None:
            wish.taken = True
        return wish

    def take(self, count: int) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self.waiting and len(batch) < count and (not batch or size < _BATCH_BYTES):
            item = self.waiting.popleft()
            size += len(item.message.report_json)
            batch.append(item)
        return batch

    def put_back(self, batch: Sequence[_Waiting]) -> None:
        self.waiting.extendleft(item for item in reversed(batch) if not item.done)


class GrpcTaskSource:
    """``TaskSource`` over a :class:`SchedulerLink`, which must run."""

    def __init__(
        self,
        link: SchedulerLink,
        config: SourceConfig | None = None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._link = link
        self._config = config or SourceConfig()
        self._jitter = jitter
        self._outbox = _Outbox()

    async def claim(self, slots: int, *, wait_s: float, ahead: int = 0) -> Sequence[Claim]:
        """See ``TaskSource``. SchedulerUnavailable when none answers within ``wait_s`` and a little.

        Runs are claimed ahead only when reports leave anyway: while runs are short, they do all the time.
        """
        claims = await self._claim_with_reports(slots + ahead) if self._outbox.waiting or slots == 0 else ()
        if claims or slots == 0:
            return claims
        request = fleet_pb2.ClaimRequest(slots=slots, wait_s=wait_s)
        response = await self._once(
            lambda session, timeout_s: QueueStub(session.channel).Claim(
                request, metadata=session.metadata, timeout=timeout_s
            ),
            within_s=wait_s + self._config.answer_s,
        )
        return _understood(response.claims)

    async def _claim_with_reports(self, slots: int) -> Sequence[Claim]:
        """What the next call with reports brings, or one of its own while the reports wait behind a slow one.

        Nothing when no report waits (then runs are not so short), or nothing is pending.
        """
        wish = self._outbox.wish = _Wish(slots)
        self._outbox.wished.notify()
        try:
            await wish.answered.wait_notified(within_s=self._config.report_gap_max_s)
            if wish.taken and wish.claims is None:
                await wish.answered.wait_notified(within_s=self._config.answer_s)
        finally:
            if self._outbox.wish is wish:
                self._outbox.wish = None
        if not wish.taken and self._outbox.waiting:
            _, wish.claims = await self._report((), slots)
        return wish.claims or ()

    async def reclaim(self, refs: Sequence[RunRef]) -> Mapping[RunRef, float | None]:
        """See ``TaskSource``. One attempt. Raises: SchedulerUnavailable; the leases are as they were."""
        if not refs:
            return {}
        request = fleet_pb2.ReclaimRequest(refs=[ref_to_message(ref) for ref in refs])
        response = await self._once(
            lambda session, timeout_s: QueueStub(session.channel).Reclaim(
                request, metadata=session.metadata, timeout=timeout_s
            ),
            within_s=self._config.answer_s,
        )
        return {
            ref_from_message(result.ref): None if result.lost else result.lease_until_s for result in response.results
        }

    async def report(self, ref: RunRef, report: RunReport) -> None:
        """See ``TaskSource``. Goes on through any absence of the scheduler, until it is answered.

        Raises: Conflict; whatever else the queue has against this report.
        Cancellation: the report may have arrived.
        """
        mine = _Waiting(ref, report_to_message(ref, report))
        self._outbox.waiting.append(mine)
        pause_s = self._config.retry_min_s
        try:
            while not mine.done:
                async with self._outbox.turn:
                    answered = await self._send_with(mine)
                if not answered:
                    await asyncio.sleep(pause_s * (0.5 + self._jitter()))
                    pause_s = min(pause_s * 2, self._config.retry_max_s)
        finally:
            if not mine.done and mine in self._outbox.waiting:
                self._outbox.waiting.remove(mine)
        if mine.error is not None:
            raise mine.error

    async def _send_with(self, mine: _Waiting) -> bool:
        """Send what waits, ``mine`` sooner or later among it; False when something must be sent again."""
        if mine.done:
            return True
        loop = asyncio.get_running_loop()
        if (early_s := self._outbox.next_s - loop.time()) > 0 and self._outbox.wish is None:
            await self._outbox.wished.wait_notified(within_s=early_s)
        batch = self._outbox.take(self._config.batch_reports_max)
        self._outbox.next_s = loop.time() + self._gap_s(len(batch))
        try:
            return await self._send(batch)
        finally:
            self._outbox.put_back(batch)

    def _gap_s(self, reports: int) -> float:
        config = self._config
        return min(config.report_gap_s * (reports // 2), config.report_gap_max_s)

    async def _send(self, batch: Sequence[_Waiting]) -> bool:
        wish = self._outbox.take_wish()
        claims: Sequence[Claim] = ()
        try:
            results, claims = await self._report([item.message for item in batch], 0 if wish is None else wish.slots)
            for item, result in zip(batch, results, strict=True):
                error = error_of_code(result.error_code, result.error) if result.error_code else None
                if error is None or not error.retryable:
                    item.answer(error)
        except TooLarge as error:
            if len(batch) == 1:
                batch[0].answer(error)
            else:
                return await self._send_halves(batch)
        except CorralError as error:
            if not error.retryable:
                for item in batch:
                    item.answer(error)
        finally:
            if wish is not None:
                wish.answer(claims)
        return all(item.done for item in batch)

    async def _report(
        self, reports: Sequence[fleet_pb2.RunReport], claim_slots: int
    ) -> tuple[Sequence[fleet_pb2.ReportResult], Sequence[Claim]]:
        request = fleet_pb2.ReportRequest(reports=reports, claim_slots=claim_slots)
        response = await self._once(
            lambda session, timeout_s: QueueStub(session.channel).Report(
                request, metadata=session.metadata, timeout=timeout_s
            ),
            within_s=self._config.answer_s,
        )
        return response.results, _understood(response.claims)

    async def _send_halves(self, batch: Sequence[_Waiting]) -> bool:
        middle = len(batch) // 2
        first, second = await self._send(batch[:middle]), await self._send(batch[middle:])
        return first and second

    async def _once(self, call: Callable[[LinkSession, float], Awaitable[T]], *, within_s: float) -> T:
        """One call in the current session; waits for one. Raises what the scheduler says, or SchedulerUnavailable."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + within_s
        try:
            async with asyncio.timeout(within_s):
                session = await self._link.wait_session()
        except TimeoutError as error:
            raise SchedulerUnavailable(self._link.trouble or "the scheduler does not answer") from error
        try:
            return await call(session, max(0.1, until_s - loop.time()))
        except grpc.aio.AioRpcError as failure:
            meaning = error_of_rpc(failure)
            if isinstance(meaning, Unauthenticated):
                self._link.session_refused(session)
                meaning = SchedulerUnavailable("the scheduler has forgotten our session")
            raise meaning from failure


def _understood(messages: Iterable[fleet_pb2.Claim]) -> list[Claim]:
    claims = []
    for message in messages:
        try:
            claims.append(claim_from_message(message))
        except msgspec.MsgspecError as error:  # a newer scheduler's; the lease ends and another worker gets it
            _logger.warning("claim-not-understood", task=message.ref.task_id, error=str(error))
    return claims
