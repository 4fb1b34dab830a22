"""The server: every service of the protocol on one port, with health and reflection."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from corral.doors.reapi.bytestream import ByteStreamServicer
from corral.doors.reapi.capabilities import CapabilitiesServicer
from corral.doors.reapi.cas import CasServicer
from corral.doors.reapi.entrance import Entrance
from corral.doors.reapi.execution import ExecutionServicer, OperationsServicer
from corral.doors.reapi.failures import abort
from corral.doors.reapi.inline import Inliner
from corral.doors.reapi.introspection import add_health, add_reflection
from corral.doors.reapi.results import ActionCacheServicer
from corral.doors.reapi.services import Services
from corral.doors.reapi.uploads import Uploads
from corral.fleet.adapters.grpc_server import serving as serving_grpc
from corral.wire.reapi import bytestream_pb2, operations_pb2
from corral.wire.reapi import bytestream_pb2_grpc as bytestream_grpc
from corral.wire.reapi import operations_pb2_grpc as operations_grpc
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi import remote_execution_pb2_grpc as reapi_grpc
from corral.wire.transport import WireLimits

_ACTION_CACHE: Final = "build.bazel.remote.execution.v2.ActionCache"
_DESCRIBED: Final = (reapi.DESCRIPTOR, bytestream_pb2.DESCRIPTOR, operations_pb2.DESCRIPTOR)
SERVICES: Final = tuple(service.full_name for file in _DESCRIBED for service in file.services_by_name.values())
"""The names of what is served."""


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[int]:
    """Serve at ``reapi.address`` while the block runs; gives the port. Leaving ends every call.

    Raises: InvalidSpec for plain text on an address that others can reach; Conflict when the port is taken.
    """
    config = services.config
    uploads = Uploads(services.blobs, services.clock, most=config.uploads, idle_s=config.upload_idle_s)
    limits = WireLimits(message_bytes_max=config.message_bytes, streams_max=config.streams)
    async with (
        uploads.running(),
        serving_grpc(
            config.address,
            _registrations(services, uploads),
            limits=limits,
            tls=config.tls,
            section="reapi.tls",
            setting="reapi.address",
            answer=abort,
        ) as port,
    ):
        yield port


def _registrations(services: Services, uploads: Uploads) -> list[Callable[[Any], None]]:
    entrance = Entrance(services.identities, certificates=bool(services.config.tls.client_ca))
    inliner = Inliner(services.blobs, bytes_max=services.config.inline_bytes)
    capabilities = CapabilitiesServicer(entrance, services.config, blob_bytes=services.blob_bytes)
    cas = CasServicer(entrance, services)
    streams = ByteStreamServicer(entrance, services, uploads)
    execution = ExecutionServicer(entrance, services, inliner)
    running = OperationsServicer(entrance, services, inliner)
    results = ActionCacheServicer(entrance, services, inliner)
    return [
        lambda server: reapi_grpc.add_CapabilitiesServicer_to_server(capabilities, server),
        lambda server: reapi_grpc.add_ContentAddressableStorageServicer_to_server(cas, server),
        lambda server: reapi_grpc.add_ExecutionServicer_to_server(execution, server),
        lambda server: bytestream_grpc.add_ByteStreamServicer_to_server(streams, server),
        lambda server: operations_grpc.add_OperationsServicer_to_server(running, server),
        lambda server: _add_action_cache(results, server),
        lambda server: add_health(server, SERVICES),
        lambda server: add_reflection(server, SERVICES),
    ]


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
