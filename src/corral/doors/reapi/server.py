"""The server: every service of the protocol on one port, with health and reflection."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from corral.doors.reapi.bytestream import ByteStreamServicer
from corral.doors.reapi.capabilities import CapabilitiesServicer
from corral.doors.reapi.cas import CasServicer
from corral.doors.reapi.entrance import Admission, Entrance
from corral.doors.reapi.execution import ExecutionServicer, OperationsServicer
from corral.doors.reapi.failures import abort
from corral.doors.reapi.inline import Inliner
from corral.doors.reapi.introspection import add_health, add_reflection
from corral.doors.reapi.passing import AdmittedElsewhere, PassedOn
from corral.doors.reapi.results import ActionCacheServicer
from corral.doors.reapi.services import Actions, Services
from corral.doors.reapi.uploads import Uploads
from corral.fleet.adapters.grpc_server import serving as serving_grpc
from corral.wire.reapi import bytestream_pb2, operations_pb2
from corral.wire.reapi import bytestream_pb2_grpc as bytestream_grpc
from corral.wire.reapi import operations_pb2_grpc as operations_grpc
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi import remote_execution_pb2_grpc as reapi_grpc
from corral.wire.transport import WireLimits, is_loopback

_ACTION_CACHE: Final = "build.bazel.remote.execution.v2.ActionCache"
_CONTENT: Final = "build.bazel.remote.execution.v2.ContentAddressableStorage"
_DESCRIBED: Final = (reapi.DESCRIPTOR, bytestream_pb2.DESCRIPTOR, operations_pb2.DESCRIPTOR)
SERVICES: Final = tuple(service.full_name for file in _DESCRIBED for service in file.services_by_name.values())
"""The names of what is served."""
_PASSED_ON_MAX: Final = 100_000
Registration = Callable[[Any], None]
"""Adds a servicer to a server."""


@asynccontextmanager
async def serving(services: Services, actions: Actions) -> AsyncIterator[int]:
    """Serve at ``reapi.address`` while the block runs; gives the port. Leaving ends every call.

    Raises: InvalidSpec for plain text on an address that others can reach; Conflict when the port is taken.
    """
    entrance = _entrance(services)
    async with _serving(services, entrance, _executions(services, actions, entrance)) as port:
        yield port


@asynccontextmanager
async def serving_beside(services: Services, scheduler: grpc.aio.Channel) -> AsyncIterator[int]:
    """As ``serving``, in one of several processes that share the port; executions go to ``scheduler``."""
    entrance = _entrance(services)
    async with _serving(services, entrance, [PassedOn(entrance, scheduler).add_to], share_port=True) as port:
        yield port


@asynccontextmanager
async def serving_executions(services: Services, actions: Actions, address: str) -> AsyncIterator[None]:
    """Serve what doors in processes of their own pass on, at ``unix:path``, while the block runs."""
    limits = WireLimits(message_bytes_max=services.config.message_bytes, streams_max=_PASSED_ON_MAX)
    registrations = _executions(services, actions, AdmittedElsewhere())
    async with serving_grpc(address, registrations, limits=limits, answer=abort):
        yield


@asynccontextmanager
async def _serving(
    services: Services, entrance: Entrance, executions: list[Registration], *, share_port: bool = False
) -> AsyncIterator[int]:
    config = services.config
    uploads = Uploads(services.blobs, services.clock, most=config.uploads, idle_s=config.upload_idle_s)
    limits = WireLimits(message_bytes_max=config.message_bytes, streams_max=config.streams)
    async with (
        uploads.running(),
        serving_grpc(
            config.address,
            [*_contents(services, entrance, uploads), *executions],
            limits=limits,
            tls=config.tls,
            section="reapi.tls",
            setting="reapi.address",
            answer=abort,
            share_port=share_port,
        ) as port,
    ):
        yield port


def _entrance(services: Services) -> Entrance:
    config = services.config
    return Entrance(services.identities, certificates=bool(config.tls.client_ca), loopback=is_loopback(config.address))


def _contents(services: Services, entrance: Entrance, uploads: Uploads) -> list[Registration]:
    """All that needs no queue."""
    inliner = Inliner(services.blobs, bytes_max=services.config.inline_bytes)
    capabilities = CapabilitiesServicer(entrance, services.config, blob_bytes=services.blob_bytes)
    cas = CasServicer(entrance, services)
    streams = ByteStreamServicer(entrance, services, uploads)
    results = ActionCacheServicer(entrance, services, inliner)
    return [
        lambda server: _add_action_cache(results, server),
        lambda server: _add_content(cas, server),
        lambda server: bytestream_grpc.add_ByteStreamServicer_to_server(streams, server),
        lambda server: reapi_grpc.add_CapabilitiesServicer_to_server(capabilities, server),
        lambda server: add_health(server, SERVICES),
        lambda server: add_reflection(server, SERVICES),
    ]


def _executions(services: Services, actions: Actions, admission: Admission) -> list[Registration]:
    inliner = Inliner(services.blobs, bytes_max=services.config.inline_bytes)
    execution = ExecutionServicer(admission, actions, inliner)
    running = OperationsServicer(admission, actions, inliner)
    return [
        lambda server: reapi_grpc.add_ExecutionServicer_to_server(execution, server),
        lambda server: operations_grpc.add_OperationsServicer_to_server(running, server),
    ]


def _add_content(servicer: CasServicer, server: grpc.aio.Server) -> None:
    """The question by hand, because it comes and goes as bytes. Whoever is added first serves a method."""
    handlers = {"FindMissingBlobs": grpc.unary_unary_rpc_method_handler(servicer.FindMissingBlobs)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_CONTENT, handlers),))
    reapi_grpc.add_ContentAddressableStorageServicer_to_server(servicer, server)


def _add_action_cache(servicer: ActionCacheServicer, server: grpc.aio.Server) -> None:
    """By hand, because the answers are encoded already."""
    handlers = {
        "GetActionResult": grpc.unary_unary_rpc_method_handler(
            servicer.GetActionResult, request_deserializer=reapi.GetActionResultRequest.FromString
        ),
        "UpdateActionResult": grpc.unary_unary_rpc_method_handler(
            servicer.UpdateActionResult, request_deserializer=reapi.UpdateActionResultRequest.FromString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_ACTION_CACHE, handlers),))
