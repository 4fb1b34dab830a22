"""Routes: which worker a client may dial directly, and the token for it."""

from typing import Any

from litestar import Controller, post
from litestar.params import JSONBody

from corral.compile.remote.model import WorkerRoute
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.route_model import RouteList, RouteRequest
from corral.kernel.errors import NotFound


class RouteDoor(Controller):
    """`/routes`"""

    path = "/routes"
    tags = ("fleet",)
    opt: Any = {"area": "actions", "reads": True}  # noqa: RUF012 (Litestar copies it per handler)

    @post(status_code=200, summary="Ask for workers to dial directly, or give routes back")
    async def ask(self, services: GivenServices, caller: GivenCaller, data: JSONBody[RouteRequest]) -> RouteList:
        """The token of a route is for five minutes, one tenant, one image, one worker and one purpose."""
        caller.require("actions:execute")
        if services.routes is None:
            raise NotFound("this scheduler gives no routes")
        services.routes.release(caller.tenant, data.release)
        if data.slots == 0:
            return RouteList()
        found = services.routes.route(
            caller.tenant, image=data.image, purpose=data.purpose, slots=data.slots, avoid=data.avoid
        )
        return RouteList(
            routes=tuple(
                WorkerRoute(
                    id=each.id,
                    worker_id=each.worker_id,
                    address=each.address,
                    certificate_fingerprint=each.certificate_fingerprint,
                    token=each.token,
                    slots=each.slots,
                    expires_in_s=each.lasts_s,
                    result_key=each.result_key,
                )
                for each in found
            )
        )
