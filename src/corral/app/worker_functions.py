"""Functions on a worker: the engine, who follows the scheduler's orders, and the stream between them."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from corral.app.config_sections import Config
from corral.blobs.ports import BlobReader
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.functions.adapters.grpc_link import FunctionsStream
from corral.functions.attendant import Attendant
from corral.functions.engine.host import WorkerFunctions
from corral.kernel.clock import Clock


async def open_worker_functions(
    config: Config,
    data: Path,
    blobs: BlobReader,
    link: SchedulerLink,
    clock: Clock,
    *,
    draining: Callable[[], bool],
    stack: AsyncExitStack,
) -> list[Coroutine[Any, Any, Any]]:
    """Open the engine on ``stack``; gives the loops that are to run beside the link."""
    host = await stack.enter_async_context(WorkerFunctions(data, blobs, config.engine, clock))
    attendant = Attendant(host, draining=draining)
    return [attendant.run(), FunctionsStream(link, attendant).run()]
