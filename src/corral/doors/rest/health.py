"""Is it there, can it work, what does it count."""

import re
from typing import Final

from litestar import MediaType, Response, get

from corral import __version__
from corral.client.model import Version
from corral.doors.rest.given import GivenServices

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*(\{[^{}\n]*\})?")


@get("/health", media_type=MediaType.TEXT, tags=["health"], summary="200 while the process serves")
async def health() -> str:
    """Says nothing about workers."""
    return "ok\n"


@get("/ready", media_type=MediaType.TEXT, tags=["health"], summary="200 when tasks can run")
async def ready(services: GivenServices) -> Response[str]:
    """503 until the database answers and a worker is ready."""
    workers = [worker for worker in await services.fleet.workers() if worker.state == "ready"]
    if not workers:
        return Response("no worker is ready\n", status_code=503, media_type=MediaType.TEXT)
    count = "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
    return Response(f"ready, {count}\n", media_type=MediaType.TEXT)


@get("/metrics", media_type=MediaType.TEXT, tags=["health"], summary="Counters and gauges for Prometheus")
async def metrics(services: GivenServices) -> str:
    """Text format, version 0.0.4."""
    lines = [
        f"{name} {value:.10g}" for name, value in sorted((await services.metrics()).items()) if _NAME.fullmatch(name)
    ]
    return "\n".join(lines) + "\n"


@get("/version", tags=["health"], summary="Who answers")
async def version() -> Version:
    """Version of the scheduler."""
    return Version(version=__version__)
