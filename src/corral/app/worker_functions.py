"""Functions on a worker: the engine, who follows the scheduler's orders, and the stream between them."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from corral.app.config_sections import Config
from corral.blobs.ports import BlobReader
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.functions.adapters.grpc_link import FunctionsStream
from corral.functions.attendant import Attendant
from corral.functions.engine.host import WorkerFunctions
from corral.functions.traces import Trace
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec


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
    export = await _exporter(config.engine.otlp, link.registration.worker_id, stack)
    engine = WorkerFunctions(data, blobs, config.engine, clock, on_trace=export)
    host = await stack.enter_async_context(engine)
    attendant = Attendant(host, draining=draining)
    return [attendant.run(), FunctionsStream(link, attendant).run()]


async def _exporter(endpoint: str, worker: str, stack: AsyncExitStack) -> Callable[[Trace], None]:
    """Where traces go beside their owners' logs. Raises InvalidSpec when that needs what is not installed."""
    if not endpoint:
        return lambda trace: None
    try:
        otlp = import_module("corral.functions.adapters.otlp")
    except ModuleNotFoundError as error:
        raise InvalidSpec(
            f"engine.otlp: traces for a collector need {error.name}", cure="pip install 'corral[tracing]'"
        ) from error
    export: Callable[[Trace], None] = await stack.enter_async_context(otlp.exporting(endpoint, worker=worker))
    return export
