"""Workers: look, drain, take back."""

from typing import Any

from litestar import Controller, Request, get, post
from litestar.params import FromPath
from msgspec.structs import replace

from corral.client.model import WorkerList, WorkerView
from corral.doors.rest.entrance import must_be_admin
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Caller
from corral.kernel.errors import NotFound


class WorkerDoor(Controller):
    """`/workers`"""

    path = "/workers"
    tags = ("fleet",)
    opt = {"area": "fleet"}  # noqa: RUF012 (Litestar copies it per handler)

    @get(summary="All workers that are not forgotten")
    async def all(self, services: GivenServices, caller: GivenCaller) -> WorkerList:
        """Every tenant may see them; only administrators see what they run, and steer them."""
        return WorkerList(workers=tuple(_seen_by(caller, each) for each in await services.fleet.workers()))

    @get("/{worker_id:str}", summary="One worker")
    async def one(self, services: GivenServices, caller: GivenCaller, worker_id: FromPath[str]) -> WorkerView:
        """Its state as last heard."""
        for worker in await services.fleet.workers():
            if worker.id == worker_id:
                return _seen_by(caller, worker)
        raise NotFound(f"there is no worker {worker_id}")

    @post("/{worker_id:str}/drain", status_code=200, summary="Let a worker finish what it runs and take nothing new")
    async def drain(
        self, request: Request[Any, Any, Any], services: GivenServices, caller: GivenCaller, worker_id: FromPath[str]
    ) -> WorkerView:
        """For administrators."""
        must_be_admin(caller, request)
        return await services.fleet.drain(caller, worker_id, drain=True)

    @post("/{worker_id:str}/undrain", status_code=200, summary="Let a draining worker take work again")
    async def undrain(
        self, request: Request[Any, Any, Any], services: GivenServices, caller: GivenCaller, worker_id: FromPath[str]
    ) -> WorkerView:
        """For administrators."""
        must_be_admin(caller, request)
        return await services.fleet.drain(caller, worker_id, drain=False)


def _seen_by(caller: Caller, worker: WorkerView) -> WorkerView:
    """Runs and pools name the tasks and the names of all tenants."""
    return worker if caller.admin else replace(worker, runs=(), pools=None)
