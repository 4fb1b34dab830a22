"""Workers, the scheduler itself, and its records, over REST."""

from corral.client.connection import Connection, segment
from corral.client.model import AuditPage, SecurityEventPage, Version, WorkerList, WorkerView


class Workers:
    """The fleet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> tuple[WorkerView, ...]:
        """All workers that are not forgotten."""
        return (await self._connection.call("GET", "/workers", WorkerList)).workers

    async def get(self, worker_id: str) -> WorkerView:
        """One worker. Raises NotFound."""
        return await self._connection.call("GET", f"/workers/{segment(worker_id)}", WorkerView)

    async def drain(self, worker_id: str) -> WorkerView:
        """Tell a worker to take nothing new. Raises NotFound, Refused without the right."""
        return await self._connection.call("POST", f"/workers/{segment(worker_id)}/drain", WorkerView)

    async def undrain(self, worker_id: str) -> WorkerView:
        """Let a draining worker take work again."""
        return await self._connection.call("POST", f"/workers/{segment(worker_id)}/undrain", WorkerView)


class Records:
    """What the ledger holds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def audit(self, *, task_id: str = "", limit: int = 50, after: str = "") -> AuditPage:
        """Audit rows of the tenant, newest first."""
        query = {"task_id": task_id, "limit": limit, "after": after}
        return await self._connection.call("GET", "/audit", AuditPage, query=query)

    async def security_events(self, *, limit: int = 50, after: str = "") -> SecurityEventPage:
        """Refusals, newest first; for administrators."""
        query = {"limit": limit, "after": after}
        return await self._connection.call("GET", "/security-events", SecurityEventPage, query=query)

    async def version(self) -> Version:
        """Who answers."""
        return await self._connection.call("GET", "/version", Version)
