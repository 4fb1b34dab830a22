"""The fleet, as the compile daemon sees it: routes over REST, and the compiler that uses them."""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from corral.client.connection import Connection
from corral.compile.remote.compiler import FleetCompiler
from corral.compile.remote.model import RemoteConfig, WorkerRoute
from corral.doors.rest.route_model import RouteList, RouteRequest
from corral.kernel.clock import Clock


class RestRoutes:
    """See ``compile.remote.model.Routes``."""

    def __init__(self, config: RemoteConfig, environment: Mapping[str, str]) -> None:
        self._connection = Connection(
            config.scheduler, config.secret(environment), ca_file=config.ca_file, fingerprint=config.fingerprint
        )

    async def route(self, *, image: str, slots: int, avoid: Collection[str]) -> Sequence[WorkerRoute]:
        asked = RouteRequest(image=image, slots=slots, avoid=tuple(avoid))
        return (await self._connection.call("POST", "/routes", RouteList, body=asked)).routes

    async def release(self, route_ids: Collection[str]) -> None:
        await self._connection.call("POST", "/routes", RouteList, body=RouteRequest(slots=0, release=tuple(route_ids)))

    async def close(self) -> None:
        await self._connection.__aexit__()


def fleet_compiler(
    config: RemoteConfig,
    environment: Mapping[str, str],
    clock: Clock,
    start: Callable[[Coroutine[Any, Any, None]], None],
) -> FleetCompiler:
    """Compiles on the fleet of ``config.scheduler``. Raises InvalidSpec for its address or token."""
    return FleetCompiler(config, RestRoutes(config, environment), clock, start)
