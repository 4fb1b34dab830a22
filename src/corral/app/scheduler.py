"""The scheduler process, put together: database, queue, fleet, logs, blobs, ledger, REST.

The order of the contexts is the order of the start; the stop is its reverse. Migrations run in a child process.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from litestar.types import ControllerRouterHandler

from corral.actions.adapters.grpc_results import ResultsServicer
from corral.app.action_desk import ActionDesk
from corral.app.actions import check_payload, keep_result, keep_results_clean, make_actions
from corral.app.config_sections import Config
from corral.app.datadir import kept_id, locked_directory
from corral.app.desks import (
    AccessRefusals,
    FleetDesk,
    Identities,
    LedgerDesk,
    TaskDesk,
    TenantTable,
)
from corral.app.function_programs import Programs
from corral.app.functions import FunctionDesk, open_functions
from corral.app.http_cache import make_http_cache
from corral.app.http_server import serving
from corral.app.log_desk import LogDesk
from corral.app.reapi import ReapiIdentities, open_reapi
from corral.app.reapi_processes import serving_by_processes
from corral.app.start import configure_logging, passed_on, read_arguments, run_process, tell
from corral.blobs.service import keep_clean, open_store
from corral.database.engine import Database
from corral.database.version import check_version, migrate
from corral.doors.http_cache.door import HttpCacheDoor, mounted
from corral.doors.reapi.config import DEFAULT_ADDRESS, OFF
from corral.doors.reapi.server import serving as serving_reapi
from corral.doors.reapi.services import Services as ReapiServices
from corral.doors.rest.app import build_rest
from corral.doors.rest.services import OpenStreams, RestLimits, Services
from corral.doors.task_view.door import task_view_router
from corral.fleet.adapters.blobs import BlobsServicer
from corral.fleet.adapters.grpc_server import FleetServicer
from corral.fleet.adapters.grpc_server import serving as serving_grpc
from corral.fleet.adapters.sql import SqlWorkerTable
from corral.fleet.ports import QueueHooks
from corral.fleet.routes import Router
from corral.fleet.service import Fleet
from corral.functions.adapters.grpc_server import FunctionsServicer
from corral.functions.service import Functions
from corral.kernel.clock import SystemClock
from corral.kernel.errors import CorralError
from corral.kernel.ids import new_id
from corral.ledger.adapters.sql import SqlAuditRows, SqlSecurityEvents
from corral.ledger.model import AuditRow, SecurityEvent
from corral.ledger.service import Ledger
from corral.sandboxes.runtimes.registry import name_mistake
from corral.tasks.adapters.grpc_server import QueueServicer
from corral.tasks.adapters.run_owner import tenant_of_run
from corral.tasks.logs import LogStore
from corral.tasks.payload import secret_names
from corral.tasks.queue import Queue
from corral.tasks.sweeper import run_sweeper
from corral.tasks.views import TaskViews
from corral.tenants.service import Tenants
from corral.wire.address import bind, join_address, split_address
from corral.wire.transport import is_loopback
from corral.wire.v1 import door_pb2_grpc, fleet_pb2_grpc, functions_pb2_grpc

_log = structlog.get_logger("corral.scheduler")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the scheduler really listens."""

    http: str
    grpc: str
    reapi: str = ""
    tls: bool = False

    @property
    def ready_line(self) -> str:
        """What clients and scripts look for."""
        bazel = f" reapi={self.reapi}" if self.reapi else ""
        return f"ready http={'https' if self.tls else 'http'}://{self.http} grpc={self.grpc}{bazel}"


@asynccontextmanager
async def running_scheduler(config: Config, arguments: Sequence[str] = ()) -> AsyncIterator[Addresses]:
    """Start everything, serve while the block runs, stop in order. ``arguments`` give a child the same configuration.

    Raises: InvalidSpec for addresses and configuration; Conflict when the data directory is taken;
    UnsupportedVersion for a newer database; StoreUnavailable.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stack.enter_context(locked_directory(config.data, "scheduler"))
        listener = stack.enter_context(bind(config.scheduler.http, setting="--http"))
        await migrate(config.database_url)
        database = await stack.enter_async_context(Database.open(config.database_url, config.database))
        await check_version(database)
        ledger = await stack.enter_async_context(
            Ledger.open(database, clock, config.ledger, SqlAuditRows(), SqlSecurityEvents())
        )
        tenants = Tenants(config.tenants, config.access, refused=AccessRefusals(ledger, clock).record)
        _check_addresses(config, tenants)
        blobs = await stack.enter_async_context(
            open_store(config.blobs, data_dir=config.data, quota_bytes=tenants.quota_bytes, clock=clock)
        )
        book = TenantTable(tenants)
        queue = Queue(
            database,
            clock,
            book,
            config.queue,
            check_payload=check_payload,
            keep_outcome=partial(keep_result, clock),
            check_runtime=lambda name: name_mistake(name, offered=_offered(fleet)),
            secret_names=secret_names,
            shared=not database.url.is_sqlite,
        )
        logs = LogStore(config.data / "logs", blobs.store, clock, config.logs, on_sealed=queue.logs_finished)
        scheduler_id = kept_id(config.data / "scheduler.id", "sch", now_s=clock.now_s())
        fleet = Fleet(
            SqlWorkerTable(database),
            clock,
            QueueHooks(
                worker_lost=queue.worker_lost, desired_cancels=queue.desired_cancels, aborts=queue.signals.aborts
            ),
            tenants.authenticate_worker,
            config.fleet,
            scheduler_id=scheduler_id,
            on_refusal=partial(_record_fleet_refusal, ledger, clock),
        )
        await fleet.load()
        fleet_desk = FleetDesk(fleet)
        views = TaskViews(database, clock, book, queue.signals, waited_s=queue.waited_s, workers=fleet_desk.offers)
        functions = await open_functions(database, fleet, blobs.store, clock, config.functions, config.data)
        actions, results = make_actions(database, queue, views, blobs.cache, clock, config.actions)
        log_desk = LogDesk(logs, blobs.store, views, clock)
        loops = await stack.enter_async_context(_loops())
        loops.start(logs.run(), name="logs")
        loops.start(log_desk.keep_sealing(), name="logs:seal")
        loops.start(log_desk.keep_forgetting(config.logs.forget_every_s), name="logs:forget")
        loops.start(fleet.run(), name="fleet")
        loops.start(functions.run(), name="functions")
        loops.start(run_sweeper(queue, clock), name="sweeper")
        loops.start(actions.run(), name="actions")
        loops.start(keep_results_clean(results, clock, config.actions.clean_every_s), name="actions:clean")
        for janitor in blobs.janitors:
            loops.start(keep_clean(janitor, clock, config.blobs.clean_every_s), name="blobs:clean")
        grpc_port = await stack.enter_async_context(
            serving_grpc(
                config.scheduler.grpc,
                [
                    partial(fleet_pb2_grpc.add_FleetServicer_to_server, FleetServicer(fleet, scheduler_id)),
                    partial(
                        fleet_pb2_grpc.add_QueueServicer_to_server,
                        QueueServicer(fleet, queue, logs, tenant_of_run(database)),
                    ),
                    partial(
                        functions_pb2_grpc.add_FunctionsServicer_to_server,
                        FunctionsServicer(fleet, functions.conductor, functions.logs, config.functions),
                    ),
                    partial(fleet_pb2_grpc.add_BlobsServicer_to_server, BlobsServicer(blobs.store, fleet.session)),
                    partial(
                        door_pb2_grpc.add_ResultsServicer_to_server,
                        ResultsServicer(
                            actions.cache,
                            lambda token: fleet.session(token).worker_id,
                            partial(_add_audit_rows, database),
                            ledger.record_nowait,
                        ),
                    ),
                ],
                limits=config.wire,
                tls=config.tls,
            )
        )
        limits = config.scheduler.http_limits
        streams = OpenStreams(limits.streams)
        services = Services(
            identities=Identities(tenants, ledger, clock),
            tasks=TaskDesk(queue, views, check_payload),
            actions=ActionDesk(actions),
            logs=log_desk,
            blobs=blobs.store,
            fleet=fleet_desk,
            functions=FunctionDesk(functions, Programs(blobs.store, config.functions, config.data)),
            ledger=LedgerDesk(ledger),
            clock=clock,
            metrics=partial(_metrics, views, fleet, logs, functions),
            limits=RestLimits(
                body_bytes=limits.body_bytes,
                blob_bytes=config.blobs.blob_bytes,
                batch_tasks=limits.batch_tasks,
                page_rows=limits.page_rows,
                wait_s=limits.wait_s,
                streams=limits.streams,
            ),
            streams=streams,
            routes=Router(fleet, clock, new_id=lambda: new_id("rte", now_s=clock.now_s())),
        )
        beside: list[ControllerRouterHandler] = [task_view_router()] if config.functions.task_view else []
        if config.http_cache.enabled:
            caches = make_http_cache(database, blobs.cache, clock, config.http_cache, config.data)
            loops.start(caches.keep_clean(), name="http-cache:clean")
            beside.append(mounted(HttpCacheDoor(caches, blobs.cache, services.identities, tenants=tenants.names())))
        application = build_rest(services, beside=beside)
        http_tls = config.http_tls
        await stack.enter_async_context(serving(listener, application, stop_s=limits.stop_s, tls=http_tls))
        stack.callback(streams.break_off)
        stack.callback(functions.stop)
        reapi = await stack.enter_async_context(
            open_reapi(
                ReapiServices(
                    identities=ReapiIdentities(tenants, clock, ledger.record_nowait),
                    blobs=blobs.cache,
                    cache=actions.cache,
                    clock=clock,
                    blob_bytes=config.blobs.blob_bytes,
                    config=config.reapi,
                ),
                partial(serving_by_processes, actions=actions, supervisor=config.supervisor, arguments=arguments)
                if config.reapi.processes
                else partial(serving_reapi, actions=actions),
            )
        )
        grpc_host = split_address(config.scheduler.grpc)[0]
        yield Addresses(
            http=_host_port(listener),
            grpc=join_address(grpc_host, grpc_port),
            reapi=reapi,
            tls=bool(http_tls.certificate),
        )


async def serve(config: Config, arguments: Sequence[str], stopping: asyncio.Event) -> int:
    """Run until told to stop; the ready line goes to stdout, where a supervisor reads it."""
    configure_logging("scheduler")
    async with running_scheduler(config, arguments) as addresses:
        sys.stdout.write(addresses.ready_line + "\n")
        sys.stdout.flush()
        _log.info("serving", http=addresses.http, grpc=addresses.grpc, data_dir=str(config.data))
        await stopping.wait()
        _log.info("stopping")
    return 0


class _Loops:
    """The endless loops of the process: cancelled together at its end; one that fails ends the process."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: list[asyncio.Task[None]] = []

    def start(self, loop: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run ``loop`` until the end."""
        self._running.append(self._group.create_task(loop, name=name))

    def stop(self) -> None:
        """Cancel all."""
        for loop in self._running:
            loop.cancel()


@asynccontextmanager
async def _loops() -> AsyncIterator[_Loops]:
    async with asyncio.TaskGroup() as group:
        loops = _Loops(group)
        try:
            yield loops
        finally:
            loops.stop()


def _check_addresses(config: Config, tenants: Tenants) -> None:
    http = config.scheduler.http
    tenants.check_listen(http, is_loopback=is_loopback(http))
    grpc = config.scheduler.grpc
    tenants.check_workers_listen(grpc, is_loopback=is_loopback(grpc))
    reapi = config.reapi.address or DEFAULT_ADDRESS
    if reapi != OFF:
        tenants.check_listen(reapi, is_loopback=is_loopback(reapi))


def _offered(fleet: Fleet) -> set[str]:
    return {name for worker in fleet.list_workers() for name in worker.registration.runtimes}


def _record_fleet_refusal(ledger: Ledger, clock: SystemClock, kind: str, actor: str, reason: str) -> None:
    ledger.record_nowait(SecurityEvent(at_s=clock.now_s(), component="fleet", kind=kind, reason=reason, actor=actor))


async def _add_audit_rows(database: Database, rows: Sequence[AuditRow]) -> None:
    await database.write(lambda connection: SqlAuditRows().add(connection, rows))


async def _metrics(views: TaskViews, fleet: Fleet, logs: LogStore, functions: Functions) -> Mapping[str, float]:
    queue = await views.statistics()
    values: dict[str, float] = {
        'corral_claim_wait_seconds{quantile="0.5"}': queue.waited_p50_s,
        'corral_claim_wait_seconds{quantile="0.99"}': queue.waited_p99_s,
    }
    for tenant, phases in queue.phases.items():
        for phase, count in phases.items():
            values[f'corral_tasks{{tenant="{tenant}",phase="{phase.value}"}}'] = count
    for name, count in fleet.statistics().items():
        values[f"corral_{name}" if name.startswith("slots") else f'corral_workers{{state="{name}"}}'] = count
    values.update({f"corral_log_store_{name}": count for name, count in logs.statistics().items()})
    values.update(functions.metrics())
    return values


def _host_port(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return join_address(host, port)


def main() -> int:
    """``corral.app.launch scheduler``."""
    try:
        config, arguments = read_arguments("scheduler")
    except CorralError as error:
        return tell(error)
    return run_process(partial(serve, config, passed_on(arguments)))
