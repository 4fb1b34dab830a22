"""Who a sandbox is on the host when the worker is root: two ids per tenant, shared with nobody else."""

from typing import Final

from corral.kernel.errors import SandboxFailed

TENANTS_MAX: Final = 100_000
IDS_PER_TENANT: Final = 2  # the user namespace's root, and the user of commands


class TenantUsers:
    """Host ids by tenant: ``first``, ``first + 2``, … in the order in which tenants came.

    Nothing on disk belongs to these ids, so they need not be the same after a restart.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self._ids: dict[str, int] = {}

    def of(self, tenant: str) -> int:
        """The first of the tenant's ids. Raises SandboxFailed beyond 100,000 tenants."""
        if tenant not in self._ids:
            if len(self._ids) >= TENANTS_MAX:
                raise SandboxFailed(f"this worker has no user id left for tenant {tenant}", cure="restart the worker")
            self._ids[tenant] = self.first + IDS_PER_TENANT * len(self._ids)
        return self._ids[tenant]
