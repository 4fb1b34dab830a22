"""A claim carries what its inputs of the kind "artifact" stand for: of this tenant, of the run that is meant."""

from collections.abc import Collection, Mapping

import pytest

from corral.database.engine import Database
from corral.kernel.clock import SystemClock
from corral.tasks.adapters.messages import claim_from_message, claim_to_message
from corral.tasks.limits import QueueLimits
from corral.tasks.model import Artifact, ArtifactKind, Phase, Resolved, TaskDefinition
from corral.tasks.payload import validate_payload
from corral.tasks.ports import Claim, TenantTerms
from corral.tasks.queue import Queue

OUT = Artifact(name="out.txt", kind=ArtifactKind.FILE, digest="b3:" + "0" * 64 + "-5", size_bytes=5)


class Tenants:
    """Two tenants without secrets."""

    def names(self) -> Collection[str]:
        return ("red", "blue")

    def terms(self, tenant: str) -> TenantTerms:
        return TenantTerms()

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {}


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database, SystemClock(), Tenants(), QueueLimits(), check_payload=validate_payload)


async def claimed(queue: Queue, tenant: str, payload: Mapping[str, object]) -> Claim:
    await queue.submit(tenant, [TaskDefinition(payload=dict(payload))])
    (claim,) = await queue.claim("wrk_ann", 1, wait_s=5)
    return claim


async def an_earlier_task(queue: Queue, tenant: str) -> str:
    claim = await claimed(queue, tenant, {"command": ["true"]})
    end = Resolved(at_s=1.0, phase=Phase.COMPLETED, artifacts=(OUT,))
    assert await queue.report("wrk_ann", [(claim.ref, end)]) == [None]
    return claim.ref.task_id


def taking(task: str, **more: object) -> Mapping[str, object]:
    return {"command": ["true"], "inputs": [{"path": "in", "artifact": {"task": task, "name": "out.txt", **more}}]}


async def test_the_last_run_is_meant_unless_a_run_is_named(queue: Queue) -> None:
    task = await an_earlier_task(queue, "red")

    last = await claimed(queue, "red", taking(task))
    named = await claimed(queue, "red", taking(task, run=0))
    absent = await claimed(queue, "red", taking(task, run=7))

    assert last.artifacts == {f"{task}/last/out.txt": OUT}
    assert named.artifacts == {f"{task}/0/out.txt": OUT}
    assert absent.artifacts == {}


async def test_another_tenants_artifact_looks_like_one_that_does_not_exist(queue: Queue) -> None:
    task = await an_earlier_task(queue, "red")

    claim = await claimed(queue, "blue", taking(task))

    assert claim.artifacts == {}


async def test_a_claims_artifacts_survive_the_wire(queue: Queue) -> None:
    task = await an_earlier_task(queue, "red")
    claim = await claimed(queue, "red", taking(task))

    assert claim_from_message(claim_to_message(claim)) == claim
