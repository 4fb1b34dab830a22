"""The scheduler, as the compile daemon sees it: routes over REST."""

from collections.abc import Collection, Mapping, Sequence

from corral.client.connection import Connection
from corral.compile.remote.model import RemoteConfig, WorkerRoute
from corral.doors.rest.route_model import RouteList, RouteRequest


class RestRoutes:
    """See ``compile.remote.model.Routes``."""

    def __init__(self, config: RemoteConfig, environment: Mapping[str, str]) -> None:
        self._connection = Connection(config.scheduler, config.secret(environment))

    async def route(self, *, image: str, slots: int, avoid: Collection[str]) -> Sequence[WorkerRoute]:
        asked = RouteRequest(image=image, slots=slots, avoid=tuple(avoid))
        return (await self._connection.call("POST", "/routes", RouteList, body=asked)).routes

    async def release(self, route_ids: Collection[str]) -> None:
        await self._connection.call("POST", "/routes", RouteList, body=RouteRequest(slots=0, release=tuple(route_ids)))

    async def close(self) -> None:
        await self._connection.__aexit__()
