"""What doors call to have actions executed: look in the cache, join what runs, queue the rest, keep what succeeded.

Everything that matters is in the database and the store: a scheduler may be killed at any point, and an execution
that a client knows by its id goes on under the next one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import structlog

from corral.actions.adapters.messages import read_action, read_command
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionLimits
from corral.actions.machine import properties_of, read_platform, with_pool
from corral.actions.model import (
    Action,
    Command,
    ExecutionOutcome,
    ExecutionUpdate,
    Stage,
    StoredResult,
)
from corral.actions.ports import ActionCache, ExecutionRequest, Executions, ExecutionState
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobReader
from corral.blobs.turns import Turns
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, InvalidSpec, NotFound

_log = structlog.get_logger(__name__)
_CACHED: Final = "cached:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionStatistics:
    """What the service has done since it started."""

    hits: int
    misses: int
    joined: int
    queued: int
    abandoned: int


class ActionService:
    """One scheduler's actions. ``run`` beside it cancels what nobody waits for any more."""

    def __init__(
        self,
        cache: ActionCache,
        executions: Executions,
        blobs: BlobReader,
        clock: Clock,
        limits: ActionLimits | None = None,
    ) -> None:
        self.cache = cache
        self._executions = executions
        self._blobs = blobs
        self._clock = clock
        self._limits = limits or ActionLimits()
        self._turns: Turns[tuple[str, Digest]] = Turns()
        self._followers: Counter[tuple[str, str]] = Counter()
        self._left: dict[tuple[str, str], float] = {}
        self._hits = self._misses = self._joined = self._queued = self._abandoned = 0

    # ---- for doors ----

    async def execute(
        self, tenant: str, action: Digest, *, skip_cache_lookup: bool = False, priority: int = 0
    ) -> AsyncGenerator[ExecutionUpdate, None]:
        """Have an action executed, or find its result; ends with the one update whose stage is COMPLETED.

        A result in the cache is told at once, also when the action's own blob was never stored. An equal action that
        runs already is joined, unless it says ``do_not_cache``. Leave early with ``aclosing``: the execution goes on
        and can be come back to by its id; after ``abandon_s`` without anybody it is canceled.

        Args:
            priority: lower runs sooner, 0 is normal; among this tenant's own executions only.

        Raises (before the first update; later failures are the outcome's ``error``):
            MissingBlobs: the action, or its command, is not stored.
            InvalidSpec: it is malformed, or its platform asks for what does not exist.
            QueueFull: the tenant has its bound of waiting work.
            StoreUnavailable: a store failed.
        """
        if not skip_cache_lookup and (found := await self.cache.get(tenant, action)) is not None:
            self._hits += 1
            yield _hit(action, found)
            return
        self._misses += 1
        async with self._turns.hold((tenant, action)):
            state = await self._executions.find(tenant, action)
            if state is not None and state.outcome is None:
                self._joined += 1
            elif not skip_cache_lookup and state is not None and await self._keep(tenant, state):
                yield _as_hit(_update(state))
                return
            else:
                state = await self._submit(tenant, action, priority)
        async with aclosing(self._follow(tenant, state)) as updates:
            async for update in updates:
                yield update

    async def wait(self, tenant: str, execution: str) -> AsyncGenerator[ExecutionUpdate, None]:
        """The updates of an execution from where it stands now, as ``execute``; also after a restart.

        Raises: NotFound for an id that does not exist, is another tenant's, or is forgotten.
        """
        if execution.startswith(_CACHED):
            yield await self._come_back(tenant, execution)
            return
        state = await self._executions.state(tenant, execution)
        async with aclosing(self._follow(tenant, state)) as updates:
            async for update in updates:
                yield update

    async def cancel(self, tenant: str, execution: str) -> None:
        """End an execution, for everybody who shares it; one that has ended is no error. Raises NotFound."""
        if not execution.startswith(_CACHED):
            await self._executions.cancel(tenant, execution)

    async def run(self) -> None:
        """Cancel what nobody waits for any more, again and again, until it is cancelled itself."""
        while True:
            await asyncio.sleep(self._limits.abandon_s / 4)
            await self.sweep_abandoned()

    async def load(self, tenant: str, action: Digest) -> tuple[Action, Command]:
        """The action and its command. Raises MissingBlobs, InvalidSpec, StoreUnavailable."""
        try:
            loaded = read_action(await self._message(tenant, action), action.function)
            command = read_command(await self._message(tenant, loaded.command))
        except _NotStored as missing:
            raise MissingBlobs([missing.digest]) from None
        return loaded, command

    def statistics(self) -> ActionStatistics:
        """See ``ActionStatistics``."""
        return ActionStatistics(
            hits=self._hits,
            misses=self._misses,
            joined=self._joined,
            queued=self._queued,
            abandoned=self._abandoned,
        )

    async def sweep_abandoned(self) -> int:
        """Cancel executions that nobody has waited for during ``abandon_s``; how many. One turn of ``run``."""
        before_s = self._clock.monotonic_s() - self._limits.abandon_s
        due = [key for key, left_s in self._left.items() if left_s <= before_s]
        for tenant, execution in due:
            self._left.pop((tenant, execution), None)
            try:
                state = await self._executions.state(tenant, execution)
                if state.outcome is None:
                    await self._executions.cancel(tenant, execution)
                    self._abandoned += 1
            except NotFound:
                continue  # forgotten meanwhile
            except CorralError as error:
                self._left[tenant, execution] = self._clock.monotonic_s()
                _log.warning("an abandoned execution was not canceled", execution=execution, error=str(error))
        return len(due)

    # ---- inside ----

    async def _follow(self, tenant: str, state: ExecutionState) -> AsyncGenerator[ExecutionUpdate, None]:
        key = (tenant, state.execution)
        self._followers[key] += 1
        self._left.pop(key, None)
        try:
            told: Stage | None = None
            while state.outcome is None:
                if state.stage is not told:
                    told = state.stage
                    yield _update(state)
                changed = await self._executions.wait_changed(tenant, state, within_s=self._limits.poll_s)
                state = changed or await self._executions.state(tenant, state.execution)
            if not state.kept:
                await self._keep(tenant, state)  # before anybody hears of it
            yield _update(state)
        finally:
            self._followers[key] -= 1
            if not self._followers[key]:
                del self._followers[key]
                if state.outcome is None:
                    self._left[key] = self._clock.monotonic_s()

    async def _submit(self, tenant: str, digest: Digest, priority: int) -> ExecutionState:
        action, command = await self.load(tenant, digest)
        properties = with_pool(properties_of(action, command), self._limits.pools)
        read_platform(properties)
        timeout_s = self._limits.timeout_s if action.timeout_s is None else action.timeout_s
        if timeout_s > self._limits.timeout_max_s:
            raise InvalidSpec(
                f"timeout: the action asks for {timeout_s:g} s; the most is {self._limits.timeout_max_s:g} s",
                field="timeout",
            )
        self._queued += 1
        return await self._executions.submit(
            ExecutionRequest(
                tenant=tenant,
                action=digest,
                priority=priority,
                runtime=properties.get("runtime", ""),
                platform=properties,
                timeout_s=timeout_s,
                do_not_cache=action.do_not_cache,
            )
        )

    async def _keep(self, tenant: str, state: ExecutionState) -> bool:
        """Put what an execution left into the cache; False when it may not be there, or could not be put."""
        if not state.cacheable or state.outcome is None or state.outcome.result is None:
            return False
        stored = StoredResult(
            encoded=state.outcome.result,
            named=state.named,
            stored_s=self._clock.now_s(),
            execution=state.execution,
        )
        try:
            await self.cache.update(tenant, state.action, stored)
        except CorralError as error:  # above all: a blob was evicted between two moments
            _log.warning("a result is not cached", action=str(state.action), reason=str(error))
            return False
        return True

    async def _come_back(self, tenant: str, execution: str) -> ExecutionUpdate:
        action = Digest.parse(execution.removeprefix(_CACHED))
        found = await self.cache.get(tenant, action)
        if found is None:
            raise NotFound(f"there is no execution {execution[:120]}", id=execution[:120])
        return _hit(action, found)

    async def _message(self, tenant: str, digest: Digest) -> bytes:
        try:
            return await read_bytes(self._blobs, tenant, digest, bytes_max=self._limits.message_bytes)
        except NotFound:
            raise _NotStored(digest) from None


class _NotStored(Exception):
    def __init__(self, digest: Digest) -> None:
        super().__init__(str(digest))
        self.digest = digest


def _hit(action: Digest, found: StoredResult) -> ExecutionUpdate:
    return ExecutionUpdate(
        execution=f"{_CACHED}{action}",
        action=action,
        stage=Stage.COMPLETED,
        outcome=ExecutionOutcome(result=found.encoded, cached=True),
    )


def _update(state: ExecutionState) -> ExecutionUpdate:
    return ExecutionUpdate(
        execution=state.execution,
        action=state.action,
        stage=state.stage,
        worker=state.worker,
        outcome=state.outcome,
    )


def _as_hit(update: ExecutionUpdate) -> ExecutionUpdate:
    assert update.outcome is not None
    return replace(update, outcome=replace(update.outcome, cached=True))
