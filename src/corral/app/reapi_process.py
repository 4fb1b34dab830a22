"""One process of the door for Bazel, put together: content and results from the store and the database, executions from
the scheduler. The scheduler starts it (``app.reapi_processes``)."""

import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import grpc
import msgspec
import structlog

from corral.app.actions import make_cache
from corral.app.config_sections import Config
from corral.app.desks import AccessRefusals
from corral.app.reapi import ReapiIdentities
from corral.app.start import configure_logging, read_arguments, run_process, tell
from corral.blobs.service import open_store
from corral.database.engine import Database
from corral.database.version import check_version
from corral.doors.reapi.server import serving_beside
from corral.doors.reapi.services import Services
from corral.kernel.clock import SystemClock
from corral.kernel.errors import CorralError
from corral.ledger.adapters.sql import SqlAuditRows, SqlSecurityEvents
from corral.ledger.service import Ledger
from corral.tenants.service import Tenants
from corral.wire.transport import WireLimits, channel_options

_log: Final = structlog.get_logger("corral.reapi")


async def serve(config: Config, listen: str, executions: str, stopping: asyncio.Event) -> int:
    """Run until told to stop; one line on stdout says that it serves."""
    configure_logging("reapi")
    clock = SystemClock()
    reapi = msgspec.structs.replace(config.reapi, address=listen)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(config.database_url, config.database))
        await check_version(database)
        ledger = await stack.enter_async_context(
            Ledger.open(database, clock, config.ledger, SqlAuditRows(), SqlSecurityEvents())
        )
        tenants = Tenants(config.tenants, config.access, refused=AccessRefusals(ledger, clock).record)
        blobs = await stack.enter_async_context(
            open_store(config.blobs, data_dir=config.data, quota_bytes=tenants.quota_bytes, clock=clock)
        )
        cache, _ = make_cache(database, blobs.cache, clock, config.actions)
        limits = WireLimits(message_bytes_max=reapi.message_bytes)
        scheduler = await stack.enter_async_context(
            grpc.aio.insecure_channel(executions, options=channel_options(limits))
        )
        services = Services(
            identities=ReapiIdentities(tenants, clock, ledger.record_nowait),
            blobs=blobs.cache,
            cache=cache,
            clock=clock,
            blob_bytes=config.blobs.blob_bytes,
            config=reapi,
        )
        await stack.enter_async_context(serving_beside(services, scheduler))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stopping.wait()
    return 0


def main() -> int:
    """``corral.app.launch reapi_process``."""
    try:
        config, arguments = read_arguments("reapi_process", "--listen", "--executions")
    except CorralError as error:
        return tell(error)
    return run_process(partial(serve, config, arguments.listen, arguments.executions))
