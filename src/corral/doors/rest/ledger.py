"""What the ledger holds: audit rows of the tenant, security events for administrators."""

from typing import Any

from litestar import Controller, Request, get
from litestar.params import FromQuery

from corral.client.model import AuditPage, SecurityEventPage
from corral.doors.rest.entrance import must_be_admin
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.tasks import After, Limit, page_rows


class LedgerDoor(Controller):
    """`/audit` and `/security-events`"""

    path = ""
    tags = ("ledger",)
    opt = {"area": "ledger"}  # noqa: RUF012 (Litestar copies it per handler)

    @get("/audit", summary="One row per run, newest first")
    async def audit(
        self,
        services: GivenServices,
        caller: GivenCaller,
        task_id: FromQuery[str] = "",
        limit: Limit = 50,
        after: After = "",
    ) -> AuditPage:
        """Only the caller's tenant."""
        rows = page_rows(services, limit)
        return await services.ledger.audit(caller.tenant, task_id=task_id, limit=rows, after=after)

    @get("/security-events", summary="One event per refusal, newest first; for administrators")
    async def security_events(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        limit: Limit = 50,
        after: After = "",
    ) -> SecurityEventPage:
        """Of all tenants."""
        must_be_admin(caller, request)
        return await services.ledger.security_events(limit=page_rows(services, limit), after=after)
