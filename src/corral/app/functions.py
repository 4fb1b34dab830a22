"""Functions on the scheduler, put together; and fitted to what the REST door asks for."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol

import msgspec

from corral.app.function_programs import Programs
from corral.blobs.ports import BlobStore
from corral.client.function_model import (
    ChangeAnswer,
    ChangeList,
    ChangeView,
    DeployAnswer,
    DeployRequest,
    FunctionView,
    InstanceView,
    RevisionView,
)
from corral.database.engine import Database
from corral.fleet.model import WorkerPhase
from corral.fleet.service import Fleet
from corral.functions.adapters.homes import SqlHomeStore
from corral.functions.adapters.news import SqlNews
from corral.functions.adapters.sql import SqlFunctionStore
from corral.functions.conductor import Conductor
from corral.functions.config import FunctionsConfig
from corral.functions.homes import Homes
from corral.functions.logs import FunctionLogs
from corral.functions.machine import Change, Command, Function, HistoryEntry, RevisionEntry
from corral.functions.model import FunctionKey, InstanceReport, LogLine, RevisionSpec, Share
from corral.functions.registry import Registry
from corral.functions.service import Deployment, Functions
from corral.functions.traces import Trace
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound
from corral.kernel.ids import new_id, new_token

_FETCH_S: Final = 30.0
_PIECE: Final = 256 * 1024


class Caller(Protocol):
    """Who asks; see ``doors.rest.services``."""

    @property
    def tenant(self) -> str: ...
    @property
    def name(self) -> str: ...


async def open_functions(
    database: Database, fleet: Fleet, blobs: BlobStore, clock: Clock, config: FunctionsConfig, data: Path
) -> Functions:
    """Load the registry and put everything around it. Raises StoreUnavailable."""
    registry = Registry(SqlFunctionStore(database), clock, config)
    await registry.load()
    epoch, shared = new_token()[:16], not database.url.is_sqlite
    homes = Homes(SqlHomeStore(database), epoch, clock, expires_s=config.home_expires_s) if shared else None
    conductor = Conductor(
        registry,
        clock,
        config,
        epoch=epoch,
        new_instance_id=lambda: new_id("fni", now_s=clock.now_s()),
        expected_workers=lambda: _at_home(fleet),
        homes=homes,
    )
    logs = FunctionLogs(data / "function-logs", clock, config)
    return Functions(
        registry, conductor, logs, blobs, clock, config, shared=shared, news=SqlNews(database) if shared else None
    )


def _at_home(fleet: Fleet) -> list[str]:
    """Workers that were here before this process, and may come back at any moment."""
    return [each.registration.worker_id for each in fleet.list_workers() if each.phase is not WorkerPhase.EVICTED]


class FunctionDesk:
    """Functions as users see them."""

    def __init__(self, functions: Functions, programs: Programs) -> None:
        self._functions = functions
        self._programs = programs

    async def deploy(
        self, caller: Caller, name: str, revision: str, request: DeployRequest, *, expected: int | None
    ) -> DeployAnswer:
        """Fetch it if that is asked for, then deploy."""
        module = request.module
        if request.url:
            named = Digest.parse(module) if module else None
            module = str(await self._programs.fetch(caller.tenant, request.url, named))
        kind = request.kind or (await self._functions.shape(caller.tenant, module)).kind
        wanted = Deployment(
            key=FunctionKey(caller.tenant, name),
            revision=revision,
            spec=RevisionSpec(
                module=module,
                kind=kind,
                limits=request.limits,
                args=request.args,
                env=request.env,
                preopens=request.preopens,
                outbound=request.outbound,
                handler=request.handler,
            ),
            scale=request.scale,
            default=request.default,
            on_break=request.on_break,
        )
        done = await self._functions.deploy(wanted, actor=caller.name, expected=expected)
        return DeployAnswer(
            function=self._view(done.change.function),
            changed=bool(done.change.action),
            compile_s=done.prepared.compile_s if done.prepared else 0.0,
            cached=done.prepared is None or done.prepared.cached,
        )

    async def get(self, tenant: str, name: str) -> FunctionView:
        """One function."""
        return self._view(self._functions.get(FunctionKey(tenant, name)))

    async def list(self, tenant: str) -> "list[FunctionView]":
        """All, by name."""
        return [self._view(each) for each in self._functions.list(tenant)]

    async def switch(
        self,
        caller: Caller,
        name: str,
        revision: str,
        *,
        on: bool,
        successor: str,
        force: bool,
        expected: int | None,
    ) -> ChangeAnswer:
        """On, or off."""
        key, actor = FunctionKey(caller.tenant, name), caller.name
        if on and successor:
            raise InvalidSpec("successor: only a revision that is switched off has one", field="successor")
        if on:
            change = await self._functions.switch_on(key, revision, actor=actor, expected=expected, force=force)
        else:
            change = await self._functions.switch_off(
                key, revision, successor=successor, actor=actor, expected=expected
            )
        return self._answer(change)

    async def split(self, caller: Caller, name: str, shares: Sequence[Share], *, expected: int | None) -> ChangeAnswer:
        """Each its part."""
        key = FunctionKey(caller.tenant, name)
        return self._answer(await self._functions.set_split(key, shares, actor=caller.name, expected=expected))

    async def rollback(self, caller: Caller, name: str, version: int | None, *, expected: int | None) -> ChangeAnswer:
        """An earlier state."""
        key = FunctionKey(caller.tenant, name)
        return self._answer(await self._functions.rollback(key, version, actor=caller.name, expected=expected))

    async def apply(self, caller: Caller, name: str, command: Command, *, expected: int | None) -> ChangeAnswer:
        """Scale, stop, start, remove."""
        key = FunctionKey(caller.tenant, name)
        return self._answer(await self._functions.apply(key, command, actor=caller.name, expected=expected))

    async def history(self, tenant: str, name: str, *, limit: int, before: int) -> ChangeList:
        """Newest first; of removed functions too."""
        entries = await self._functions.history(FunctionKey(tenant, name), limit=limit, before=before or None)
        following = entries[-1].version if len(entries) == limit and entries[-1].version > 1 else 0
        return ChangeList(changes=tuple(_change_view(each) for each in entries), next=following)

    async def logs(
        self, tenant: str, name: str, *, after: int, limit: int, revision: str, request_id: str
    ) -> Sequence[LogLine]:
        """Lines that are there. Raises NotFound for a function that never was."""
        key = self._known(tenant, name)
        return await self._functions.logs.read(key, after=after, limit=limit, revision=revision, request_id=request_id)

    async def traces(self, tenant: str, name: str, *, limit: int, request_id: str) -> Sequence[Trace]:
        """The newest, oldest first. Raises NotFound for a function that never was."""
        key = self._known(tenant, name)
        lines = await self._functions.logs.read(key, after=-1, limit=limit, request_id=request_id, traces=True)
        return [msgspec.json.decode(line.text, type=Trace) for line in lines]

    async def follow(
        self, tenant: str, name: str, *, after: int, revision: str, request_id: str
    ) -> AsyncGenerator[Sequence[LogLine], None]:
        """Lines as they come; an empty batch now and then. Raises NotFound at once."""
        key = self._known(tenant, name)
        lines = self._functions.logs.follow(key, after=after, revision=revision, request_id=request_id)
        async with aclosing(lines) as batches:
            async for batch in batches:
                yield batch

    def _known(self, tenant: str, name: str) -> FunctionKey:
        key = FunctionKey(tenant, name)
        if self._functions.registry.find(key) is None:
            raise NotFound(f'there is no function "{name[:70]}"', function=name[:70])
        return key

    def _answer(self, change: Change) -> ChangeAnswer:
        return ChangeAnswer(
            function=self._view(change.function), changed=bool(change.action), action=change.action, text=change.text
        )

    def _view(self, function: Function) -> FunctionView:
        state, key = function.state, function.key
        where = f"/functions/{key.name}" if key.tenant == "default" else f"/tenants/{key.tenant}/functions/{key.name}"
        return FunctionView(
            name=key.name,
            tenant=key.tenant,
            version=function.version,
            changed_s=function.changed_s,
            default=state.default,
            split=state.split,
            on_break=state.on_break,
            why_none=state.why_none,
            revisions=tuple(self._revision(function, each) for each in state.revisions),
            urls=tuple(
                f"{front.rstrip('/')}{where}" for front in sorted(set(self._functions.conductor.fronts())) if front
            ),
            why_no_url=self._functions.conductor.why_no_front(),
        )

    def _revision(self, function: Function, entry: RevisionEntry) -> RevisionView:
        key = function.revision_key(entry)
        status = self._functions.status(key)
        return RevisionView(
            name=entry.name,
            fingerprint=entry.fingerprint,
            phase=entry.phase,
            why=entry.why,
            percent=function.state.percent(entry.name),
            deployed_s=entry.deployed_s,
            spec=self._functions.registry.spec(key),
            scale=entry.scale,
            trouble=status.unmet or status.failing,
            wanted=status.wanted,
            waiting=status.waiting,
            in_flight=status.in_flight,
            stats=status.totals,
            instances=tuple(_instance_view(worker, report) for worker, report in status.instances),
        )

    async def fetch(self, caller: Caller, url: str) -> Digest:
        """Bring a program into the store whose digest nobody knows. Only from where the operator allows."""
        return await self._programs.fetch(caller.tenant, url)


def _instance_view(worker: str, report: InstanceReport) -> InstanceView:
    return InstanceView(
        id=report.id,
        worker=worker,
        phase=report.phase,
        address=report.address,
        pid=report.pid,
        started_s=report.started_s,
        start_s=report.start_s,
        cold=report.cold,
        text=report.text,
        stats=report.stats,
    )


def _change_view(entry: HistoryEntry) -> ChangeView:
    return ChangeView(
        version=entry.version,
        at_s=entry.at_s,
        actor=entry.actor,
        action=entry.action,
        text=entry.text,
        split=entry.state.split,
        revisions=tuple(each.name for each in entry.state.revisions),
        removed=entry.removed,
    )
