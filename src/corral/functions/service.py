"""Functions, as doors see them: deploy, switch, split, roll back, scale, stop, remove, look."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from corral.blobs.ports import BlobStore
from corral.functions import machine
from corral.functions.checks import check_function_name, check_revision_name, check_scale, check_spec
from corral.functions.conductor import Conductor, RevisionStatus
from corral.functions.config import FunctionsConfig
from corral.functions.logs import FunctionLogs
from corral.functions.machine import Change, Command, Function, FunctionState, HistoryEntry
from corral.functions.model import (
    FunctionKey,
    InstancePhase,
    OnBreak,
    Prepared,
    RevisionKey,
    RevisionPhase,
    RevisionSpec,
    Scale,
    Share,
    fingerprint,
)
from corral.functions.ports import News
from corral.functions.program import Shape, check_kind, read_shape
from corral.functions.registry import Registry, keys_of
from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish, raise_if_cancelled
from corral.kernel.digest import Digest
from corral.kernel.errors import Conflict, CorralError, InvalidSpec, NotFound, SchedulerUnavailable, TooLarge
from corral.kernel.units import format_size

_UPKEEP_S: Final = 3600.0
_LEAVE_S: Final = 3.0
_COMPARE_PAUSE_S: Final = 0.02
"""What changes within this time after a comparison waits for the next one."""
_log = structlog.get_logger("corral.functions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A revision to deploy; ``spec.kind`` has been found out already."""

    key: FunctionKey
    revision: str
    spec: RevisionSpec
    scale: Scale
    default: bool | None = None
    on_break: OnBreak | None = None


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deployment did; ``prepared`` is None when the same was deployed before."""

    change: Change
    prepared: Prepared | None


class Functions:
    """One per scheduler; ``run()`` for as long as it serves. ``shared``: other schedulers may change the registry."""

    def __init__(
        self,
        registry: Registry,
        conductor: Conductor,
        logs: FunctionLogs,
        blobs: BlobStore,
        clock: Clock,
        config: FunctionsConfig,
        *,
        shared: bool = True,
        news: News | None = None,
    ) -> None:
        self.registry = registry
        self._shared, self._news = shared, news
        self._moved = asyncio.Event()  # here, or at another scheduler
        conductor.on_moved = self._moved.set
        self.conductor = conductor
        self.logs = logs
        self.config = config
        self._blobs = blobs
        self._clock = clock
        self._stopping = False

    # Changing.

    async def shape(self, tenant: str, module: str) -> Shape:
        """What the program is, from its own headers. Raises InvalidSpec for what is no program; TooLarge; NotFound."""
        digest = Digest.parse(module)
        if digest.size_bytes > self.config.module_bytes:
            raise TooLarge(
                f"the program has {format_size(digest.size_bytes)}; the limit functions.module_bytes is "
                f"{format_size(self.config.module_bytes)}"
            )
        if await self._blobs.find_missing(tenant, [digest]):
            raise NotFound(f"the program {digest} is not stored", cure="upload it first, with PUT /api/v1/blobs/DIGEST")
        return await read_shape(self._blobs, tenant, digest)

    async def deploy(self, wanted: Deployment, *, actor: str, expected: int | None = None) -> Deployed:
        """Check, compile on a worker, and remember; the same again changes nothing.

        Raises: InvalidSpec for a bad program or bad limits, with the engine's words; Conflict when the revision exists
        with other content; NoFeasibleWorker when no worker could compile it; CapacityError.
        Cancellation: deployed or not, never half.
        """
        self._check_open()
        check_function_name(wanted.key.name)
        check_revision_name(wanted.revision)
        check_spec(wanted.spec)
        check_scale(wanted.scale)
        self._check_scale_max(wanted.scale)
        key = RevisionKey(wanted.key, wanted.revision, fingerprint(wanted.spec))
        prepared = None if self.registry.active(key) else await self._prepare(key, wanted)
        self._check_open()
        command = machine.Deploy(
            revision=wanted.revision,
            fingerprint=key.fingerprint,
            scale=wanted.scale,
            default=wanted.default,
            on_break=wanted.on_break,
            revisions_max=self.config.revisions_max,
        )
        change = await self._changed(wanted.key, command, actor, expected, spec=wanted.spec)
        return Deployed(change, prepared)

    async def _prepare(self, key: RevisionKey, wanted: Deployment) -> Prepared:
        known = self.registry.find(wanted.key)
        there = known.state.revision(wanted.revision) if known is not None else None
        if there is not None and there.fingerprint != key.fingerprint:
            machine.step(known, wanted.key, machine.Deploy(wanted.revision, key.fingerprint), now_s=0.0)  # raises
        check_kind(await self.shape(wanted.key.tenant, wanted.spec.module), wanted.spec)
        await self._check_trees(wanted)
        prepared = await self.conductor.prepare(key, wanted.spec, within_s=self.config.prepare_s)
        if prepared.code:
            raise InvalidSpec(prepared.text, field="module", why=prepared.code)
        return prepared

    async def _check_trees(self, wanted: Deployment) -> None:
        trees = [Digest.parse(each.tree) for each in wanted.spec.preopens if each.tree]
        if missing := await self._blobs.find_missing(wanted.key.tenant, trees) if trees else ():
            raise NotFound(f"the tree {min(missing)} is not stored", cure="upload it first")

    async def switch_on(
        self, key: FunctionKey, revision: str, *, actor: str, expected: int | None = None, force: bool = False
    ) -> Change:
        """Make it the default, with a live instance first if a worker can have one, so that nobody waits for it.

        Raises: Conflict when its instances cannot start, unless ``force``; NotFound.
        """
        return await self._turn(key, machine.SwitchOn(revision), [revision], actor, expected, force=force)

    async def switch_off(
        self, key: FunctionKey, revision: str, *, successor: str, actor: str, expected: int | None = None
    ) -> Change:
        """Take the default from it, and give it to the successor if one is named. Raises Conflict, NotFound."""
        command = machine.SwitchOff(revision, successor)
        return await self._turn(key, command, [successor] if successor else [], actor, expected)

    async def set_split(
        self, key: FunctionKey, shares: Sequence[Share], *, actor: str, expected: int | None = None
    ) -> Change:
        """Give each its part. Raises InvalidSpec, Conflict, NotFound."""
        names = [each.revision for each in shares]
        return await self._turn(key, machine.SetSplit(tuple(shares)), names, actor, expected)

    async def rollback(
        self, key: FunctionKey, version: int | None, *, actor: str, expected: int | None = None
    ) -> Change:
        """Back to the state after ``version``; None: to the newest with another split. Raises NotFound, Conflict."""
        entry = await self.registry.history_entry(key, version)
        names = [each.revision for each in entry.state.split]
        return await self._turn(key, machine.Rollback(entry), names, actor, expected)

    async def apply(self, key: FunctionKey, command: Command, *, actor: str, expected: int | None = None) -> Change:
        """Any other command: scale, stop, start, remove. Raises what ``machine.step`` raises."""
        self._check_open()
        if isinstance(command, machine.SetScale):
            self._check_scale_max(command.scale)
        return await self._changed(key, command, actor, expected)

    async def _changed(
        self, key: FunctionKey, command: Command, actor: str, expected: int | None, spec: RevisionSpec | None = None
    ) -> Change:
        """Change it, and let the caller go on only when fronts know."""
        change = await self.registry.apply(key, command, actor=actor, expected=expected, spec=spec)
        if change.action:
            await self.conductor.wait_routed(key, change.function.version, within_s=self.config.routed_s)
        return change

    async def _turn(
        self,
        key: FunctionKey,
        command: Command,
        names: Sequence[str],
        actor: str,
        expected: int | None,
        *,
        force: bool = False,
    ) -> Change:
        """Carry out a command that gives requests to these revisions; those without an instance get one first."""
        self._check_open()
        before = self.registry.find(key)
        machine.expect_version(before, expected)
        machine.step(before, key, command, now_s=self._clock.now_s())  # what is not possible is said at once
        for name in names:
            entry = before.state.revision(name) if before is not None else None
            if entry is None or before is None or entry.phase is not RevisionPhase.ACTIVE:
                continue  # a rollback brings it back
            revision = before.revision_key(entry)
            if self.conductor.hosts() and (why := await self.conductor.warm(revision, within_s=self.config.warm_s)):
                if self.conductor.status(revision).failing and not force:
                    raise Conflict(f'revision "{name}" cannot start: {why}', cure="look at its logs, or force it")
        return await self._changed(key, command, actor, expected)

    # Looking.

    def get(self, key: FunctionKey) -> Function:
        """Raises NotFound."""
        return self.registry.get(key)

    def list(self, tenant: str) -> "list[Function]":
        """The tenant's functions by name."""
        return self.registry.list(tenant)

    def status(self, key: RevisionKey) -> RevisionStatus:
        """Its instances, demand and counters."""
        return self.conductor.status(key)

    async def history(self, key: FunctionKey, *, limit: int, before: int | None) -> Sequence[HistoryEntry]:
        """Newest first. Raises NotFound."""
        return await self.registry.history(key, limit=limit, before=before)

    def metrics(self) -> "dict[str, float]":
        """Gauges and counters of every function and revision, in Prometheus' words."""
        values: dict[str, float] = {"corral_function_log_lines_dropped_total": float(self.logs.dropped)}
        for function in self.registry.list():
            for revision in keys_of(function):
                values.update(_metrics(revision, self.conductor.status(revision), function.state))
        return values

    # Upkeep.

    def stop(self) -> None:
        """Take no changes any more; what runs goes on."""
        self._stopping = True

    async def run(self) -> None:
        """Decide, write logs, compare with other schedulers, keep programs from being evicted; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.conductor.run(), name="functions:conductor")
            group.create_task(self.logs.run(), name="functions:logs")
            if self._shared:
                group.create_task(self._compare(), name="functions:compare")
            if self._news is not None:
                group.create_task(self._news.listen(self._moved.set), name="functions:news")
            group.create_task(self._upkeep(), name="functions:upkeep")

    async def _compare(self) -> None:
        try:
            while True:
                await self._wait_moved()
                await self._tried(self.registry.compare, "functions-not-compared")
                await self._tried(self.conductor.exchange, "instances-not-told")
                await asyncio.sleep(_COMPARE_PAUSE_S)
        finally:
            await finish(self._tried(self.conductor.leave, "not-left"), within_s=_LEAVE_S)

    async def _wait_moved(self) -> None:
        """Until something moved, or it is time to look whether something did."""
        try:
            async with asyncio.timeout(self.config.compare_s):
                await self._moved.wait()
        except TimeoutError:
            return
        self._moved.clear()

    async def _upkeep(self) -> None:
        while True:
            await self._tried(self._touch, "programs-not-kept")
            await self._tried(self._forget, "function-history-not-forgotten")
            await asyncio.sleep(_UPKEEP_S)

    async def _forget(self) -> None:
        for key in await self.registry.forget():
            await asyncio.to_thread(self.logs.forget, key)

    async def _touch(self) -> None:
        """Asking for a blob marks it as used: what is deployed is not evicted."""
        by_tenant: dict[str, set[Digest]] = {}
        for key, spec in self.registry.specs().items():
            kept = by_tenant.setdefault(key.function.tenant, set())
            kept.add(Digest.parse(spec.module))
            kept.update(Digest.parse(each.tree) for each in spec.preopens if each.tree)
        for tenant, digests in by_tenant.items():
            missing = await self._blobs.find_missing(tenant, digests)
            for digest in missing:
                _log.warning("program-missing", tenant=tenant, digest=str(digest))

    async def _tried(self, work: Callable[[], Awaitable[object]], complaint: str) -> None:
        try:
            await work()
        except CorralError as error:
            raise_if_cancelled()
            _log.warning(complaint, error=str(error))

    def _check_scale_max(self, scale: Scale) -> None:
        if scale.max > self.config.scale_max:
            limit = self.config.scale_max
            raise InvalidSpec(f"scale.max: {scale.max} is over the limit functions.scale_max, {limit}", field="scale")

    def _check_open(self) -> None:
        if self._stopping:
            raise SchedulerUnavailable("this scheduler is stopping; nothing was changed", cure="try again in a moment")


def _metrics(key: RevisionKey, status: RevisionStatus, state: FunctionState) -> "dict[str, float]":
    labels = f'{{tenant="{key.function.tenant}",function="{key.function.name}",revision="{key.revision}"}}'
    totals = status.totals
    ready = sum(report.phase is InstancePhase.READY for _, report in status.instances)
    values: dict[str, float] = {
        "instances": ready,
        "instances_wanted": status.wanted,
        "percent": state.percent(key.revision),
        "in_flight": status.in_flight,
        "waiting": status.waiting,
        "memory_bytes": totals.memory_bytes,
        "latency_p50_seconds": totals.latency_p50_s,
        "latency_p99_seconds": totals.latency_p99_s,
    }
    counters = {
        "requests": totals.requests,
        "errors": totals.errors,
        "traps": totals.traps,
        "timeouts": totals.timeouts,
        "refused": totals.refused,
        "cpu_seconds": totals.cpu_s,
        "latency_seconds": totals.latency_s,
        "instantiate_seconds": totals.instantiate_s,
    }
    values.update({f"{name}_total": value for name, value in counters.items()})
    return {f"corral_function_{name}{labels}": float(value) for name, value in values.items()}
