"""Ordered tiers of stores, the fastest first: its own disk, then a shared object store, then the scheduler.

What is written goes to every tier; what is found in a later tier is filled into an earlier one. A tier that fails
or hangs is skipped: each has its own deadline, and after a failure it is left alone for a short cool-off. Its state
is in :meth:`TieredBlobs.health` and, once per change, in the log. It is fatal only when no tier could do the work.
"""

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog

from corral.blobs.feed import Sink, fan_out, paced
from corral.blobs.machine import check_digest, check_tenant, is_whole
from corral.blobs.model import TierHealth
from corral.blobs.ports import BlobStore
from corral.blobs.turns import Turns
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import (
    BlobCorrupt,
    CorralError,
    DependencyError,
    InvalidSpec,
    NotFound,
    StoreUnavailable,
)

T = TypeVar("T")

_BACKFILL_RANGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""A blob up to this size is filled into an earlier tier although only a part of it was asked for."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A store and how long one step of it (a question, a piece) may take; ``write_back`` when it can do that."""

    name: str
    store: BlobStore
    deadline_s: float
    write_back: BlobStore | None = None


@dataclass(slots=True)
class _State:
    ok: bool = True
    reason: str = ""
    since_s: float = 0.0
    left_alone_until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Miss:
    tier: Tier
    error: CorralError


class TieredBlobs:
    """A BlobStore over others. Only it may write to them, or a slow writer elsewhere looks like a hanging tier."""

    def __init__(self, tiers: Sequence[Tier], *, cool_off_s: float = 5.0, clock: Clock | None = None) -> None:
        if not tiers:
            raise InvalidSpec("tiers: at least one tier is needed", field="tiers")
        self._tiers = tuple(tiers)
        self._cool_off_s = cool_off_s
        self._clock = clock or SystemClock()
        self._states = {tier.name: _State(since_s=self._clock.now_s()) for tier in tiers}
        self._turns: Turns[tuple[str, Digest]] = Turns()
        self._fills: Turns[tuple[str, Digest]] = Turns()

    @property
    def write_back(self) -> "TieredBlobs":
        """The same tiers for content that can be made again: where a tier can, it makes it durable some seconds after
        the write. Health and turns are shared."""
        twin = copy.copy(self)
        twin._tiers = tuple(replace(tier, store=tier.write_back or tier.store) for tier in self._tiers)
        return twin

    def health(self) -> tuple[TierHealth, ...]:
        """The state of every tier, in order."""
        return tuple(
            TierHealth(name=name, ok=state.ok, reason=state.reason, since_s=state.since_s)
            for name, state in self._states.items()
        )

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        """As the port says; a blob that only a failing tier holds is reported as missing."""
        check_tenant(tenant)
        missing = frozenset(digests)
        answers = 0
        for tier in self._usable():
            if not missing:
                break
            try:
                missing = await self._ask(tier, tier.store.find_missing(tenant, missing))
                answers += 1
            except DependencyError:
                continue
        if missing and not answers:
            raise self._nobody()
        return missing

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As the port says. A tier that fails before its first piece is skipped; one that fails later ends the read
        in StoreUnavailable, and the next read skips it."""
        wants_backfill = is_whole(digest, offset, length) or digest.size_bytes <= _BACKFILL_RANGE_BYTES_MAX
        misses: list[_Miss] = []
        for tier in self._usable():
            lacking = next((miss.tier for miss in misses if isinstance(miss.error, NotFound)), None)
            source, begun = tier, False
            try:
                if lacking is not None and wants_backfill and not self._turns.is_held((tenant, digest)):
                    source = lacking if await self._backfill(tier, lacking, tenant, digest) else tier
                async with aclosing(self._read_tier(source, tenant, digest, offset, length)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            except (NotFound, BlobCorrupt, DependencyError) as error:
                if begun:
                    raise
                misses.append(_Miss(tier, error))
            else:
                return
        raise self._verdict(digest, misses)

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        check_tenant(tenant)
        check_digest(digest)
        if len(self._tiers) == 1:  # it finds out by itself whether it needs the content
            await self._sink(self._tiers[0], tenant, digest)(content)
            return
        async with self._turns.hold((tenant, digest)):
            holding, lacking = await self._who_holds(tenant, digest)
            if not holding:
                await self._write_to(lacking, tenant, digest, content)
                return
            for tier in lacking:
                await self._backfill(holding[0], tier, tenant, digest)

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        """As the port says, in every tier; raises StoreUnavailable when a tier may still hold one."""
        check_tenant(tenant)
        failure: DependencyError | None = None
        for tier in self._tiers:
            try:
                await self._ask(tier, tier.store.delete(tenant, digests))
            except DependencyError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _verdict(self, digest: Digest, misses: Sequence[_Miss]) -> CorralError:
        for miss in misses:
            if isinstance(miss.error, BlobCorrupt):
                return miss.error
        if any(not state.ok for state in self._states.values()):
            return self._nobody()  # perhaps a tier that fails has it
        return NotFound(f"no blob {digest}", digest=str(digest))

    async def _who_holds(self, tenant: str, digest: Digest) -> tuple[list[Tier], list[Tier]]:
        tiers = self._usable()

        async def holds(tier: Tier) -> bool | None:
            try:
                return not await self._ask(tier, tier.store.find_missing(tenant, [digest]))
            except DependencyError:
                return None

        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(holds(tier)) for tier in tiers]
        holding = [tier for tier, answer in zip(tiers, answers, strict=True) if answer.result()]
        lacking = [tier for tier, answer in zip(tiers, answers, strict=True) if answer.result() is False]
        if not holding and not lacking:
            raise self._nobody()
        return holding, lacking

    async def _write_to(
        self, tiers: Sequence[Tier], tenant: str, digest: Digest, content: AsyncIterable[bytes]
    ) -> None:
        sinks = [self._sink(tier, tenant, digest) for tier in tiers]
        failures = await fan_out(content, sinks, abort_within_s=max(tier.deadline_s for tier in tiers))
        for failure in failures:
            if failure is not None and not isinstance(failure, CorralError):
                raise failure
            if isinstance(failure, InvalidSpec):
                raise failure
        if all(failures):
            raise next(failure for failure in failures if failure is not None)
        for tier, failure in zip(tiers, failures, strict=True):
            if failure is not None:
                _log.warning("blob is not in this tier", tier=tier.name, digest=str(digest), reason=str(failure))

    async def _backfill(self, source: Tier, target: Tier, tenant: str, digest: Digest) -> bool:
        """Copy a blob; False when ``target`` would not take it. Raises what reading ``source`` raises."""
        if target not in self._usable():
            return False
        async with (
            self._fills.hold((tenant, digest)),  # readers of one blob fetch it once
            aclosing(self._read_tier(source, tenant, digest, 0, None)) as content,
        ):
            (failure,) = await fan_out(content, [self._sink(target, tenant, digest)], abort_within_s=target.deadline_s)
        if failure is not None:
            _log.warning("blob is not in this tier", tier=target.name, digest=str(digest), reason=str(failure))
        return failure is None

    def _sink(self, tier: Tier, tenant: str, digest: Digest) -> Sink:
        async def sink(content: AsyncIterable[bytes]) -> None:
            try:
                async with asyncio.timeout(tier.deadline_s) as deadline:
                    await tier.store.write(tenant, digest, paced(content, deadline, within_s=tier.deadline_s))
            except TimeoutError:
                raise self._hangs(tier) from None
            except DependencyError as error:
                self._failed(tier, str(error))
                raise
            self._works(tier)

        return sink

    async def _read_tier(
        self, tier: Tier, tenant: str, digest: Digest, offset: int, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(tier.store.read(tenant, digest, offset=offset, length=length)) as pieces:
            while (piece := await self._ask(tier, anext(pieces, None))) is not None:
                yield piece

    async def _ask(self, tier: Tier, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(tier.deadline_s):
                result = await answer
        except TimeoutError:
            raise self._hangs(tier) from None
        except DependencyError as error:
            self._failed(tier, str(error))
            raise
        except CorralError:
            self._works(tier)  # "no" is an answer
            raise
        self._works(tier)
        return result

    def _usable(self) -> tuple[Tier, ...]:
        """The tiers that are not left alone; all of them when none else is left."""
        now_s = self._clock.monotonic_s()
        usable = tuple(tier for tier in self._tiers if self._states[tier.name].left_alone_until_s <= now_s)
        return usable or self._tiers

    def _nobody(self) -> StoreUnavailable:
        failing = "; ".join(f"{state.name}: {state.reason}" for state in self.health() if not state.ok)
        return StoreUnavailable(f"the blob is not in a store that answers ({failing or 'no store answered'})")

    def _hangs(self, tier: Tier) -> StoreUnavailable:
        error = StoreUnavailable(f'the store "{tier.name}" did not answer within {tier.deadline_s:g} s')
        self._failed(tier, str(error))
        return error

    def _failed(self, tier: Tier, reason: str) -> None:
        state = self._states[tier.name]
        state.left_alone_until_s = self._clock.monotonic_s() + self._cool_off_s
        state.reason = reason
        if state.ok:
            state.ok = False
            state.since_s = self._clock.now_s()
            _log.warning("a blob store fails and is skipped", tier=tier.name, reason=reason)

    def _works(self, tier: Tier) -> None:
        state = self._states[tier.name]
        if not state.ok:
            state.ok, state.reason, state.since_s, state.left_alone_until_s = True, "", self._clock.now_s(), 0.0
            _log.warning("a blob store works again", tier=tier.name)
