"""Which tenant is served next, decided purely.

A free slot goes to the tenant that holds the least for its weight; among equals, to the one that was *served* least
for its weight. The first rule shares the slots that are held now, so long tasks cannot crowd out short ones; the second
shares the grants over time, so that one slot shared by many is taken in turns. Priorities order a tenant's own tasks
and never touch another tenant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A tenant that wants slots: it has ``pending`` runs, holds ``running``, and may hold ``max_running``."""

    tenant: str
    pending: int
    running: int
    weight: float = 1.0
    max_running: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many runs each tenant gets now, and what each has been served (grants by weight) from then on."""

    grants: Mapping[str, int]
    served: Mapping[str, float]


def share(demands: Sequence[Demand], slots: int, served: Mapping[str, float]) -> Shares:
    """Divide ``slots`` among ``demands``. All are used while anybody may have one more.

    ``served`` is the last answer's. A tenant that wanted nothing for a while is raised to the least of those that do:
    having been idle earns no credit.
    """
    wanting = [demand for demand in demands if demand.pending > 0 and demand.running < demand.max_running]
    floor = min((served[demand.tenant] for demand in wanting if demand.tenant in served), default=0.0)
    after = {demand.tenant: max(floor, served.get(demand.tenant, floor)) for demand in wanting}
    grants = {demand.tenant: 0 for demand in wanting}
    line = [(demand.running / demand.weight, after[demand.tenant], demand.tenant, demand) for demand in wanting]
    heapify(line)
    for _ in range(slots):
        if not line:
            break
        *_, tenant, demand = heappop(line)
        grants[tenant] += 1
        after[tenant] += 1 / demand.weight
        holds = demand.running + grants[tenant]
        if grants[tenant] < demand.pending and holds < demand.max_running:
            heappush(line, (holds / demand.weight, after[tenant], tenant, demand))
    return Shares(grants={tenant: count for tenant, count in grants.items() if count}, served=after)
