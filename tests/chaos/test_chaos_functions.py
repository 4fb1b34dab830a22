"""Functions under load while their owner changes them, and while their processes are killed."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from corral.blobs.content import pieces_of
from corral.client import Corral, DeployRequest, Scale
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError
from corral.testing.function_load import Callers, Record, Turn, changed_under_load, printing
from corral.testing.processes import CorralProcess, processes_of, public_directory, why_no_agent

CHANGES = 100
KILLS = 6
SETTINGS = (
    *("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "engine.front.listen=127.0.0.1:0"),
    *("reapi.address=", "supervisor.backoff_s=0.01", "supervisor.backoff_max_s=0.05", "supervisor.restarts=1000"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        process = CorralProcess("up", home, *SETTINGS)
        try:
            process.start()
            yield process
        finally:
            process.stop()
        assert processes_of(home) == []


async def test_deploys_switches_and_rollbacks_under_load_lose_no_request_and_send_none_astray(
    up: CorralProcess,
) -> None:
    async with Corral(up.url) as corral:
        record = await changed_under_load(corral, "switched", changes=CHANGES, callers=3, seed=3)

    assert record.failed() == []
    assert record.misrouted() == []
    assert len(record.answers) > CHANGES


async def deploy(corral: Corral, name: str, revision: str, **values: object) -> None:
    program = printing(revision)
    await corral.blobs.write("", Digest.of(program), pieces_of(program))
    request = DeployRequest(module=str(Digest.of(program)), **values)  # type: ignore[arg-type]
    await corral.functions.deploy(name, revision, request)


async def until_it_answers(corral: Corral, name: str, revision: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                function = await corral.functions.get(name)
                async with corral.functions.call(function) as answer:
                    if answer.status == 200 and answer.revision == revision:
                        return
            except CorralError:
                pass
            await asyncio.sleep(0.05)


def victims(up: CorralProcess, kind: str) -> list[psutil.Process]:
    worker = up.child("worker")
    if worker is None:
        return []
    return [each for each in worker.children(recursive=True) if any(kind in word for word in each.cmdline())]


async def test_engines_that_are_killed_under_load_are_replaced_and_every_answer_is_of_the_right_revision(
    up: CorralProcess,
) -> None:
    record, rng = Record(), random.Random(5)
    async with Corral(up.url) as corral:
        await deploy(corral, "killed", "v1", scale=Scale(min=1, max=4, target=1.0))
        record.turns.append(Turn(0.0, 0.0, "deploy", frozenset(), frozenset({"v1"})))
        function = await corral.functions.get("killed")
        await until_it_answers(corral, "killed", "v1")
        asking = Callers(function.urls[0], record)
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(asking.ask_for_ever()) for _ in range(3)]
            for _ in range(KILLS):
                for victim in victims(up, "corral-wasm-host"):
                    victim.kill()
                await until_it_answers(corral, "killed", "v1")
                await asyncio.sleep(rng.random() * 0.3)
            for client in clients:
                client.cancel()

    statuses = Counter(each.status for each in record.answers)
    assert record.misrouted() == []
    assert set(statuses) <= {200, 502, 503}
    assert statuses[200] > 10 * KILLS
    assert statuses.total() < 2 * statuses[200], "most requests never notice"


async def test_a_killed_worker_and_a_killed_scheduler_come_back_with_every_function(up: CorralProcess) -> None:
    async with Corral(up.url) as corral:
        await deploy(corral, "back", "v1")
        await deploy(corral, "back", "v2", default=True)
        await until_it_answers(corral, "back", "v2")
        for role in ("worker", "scheduler", "worker"):
            child = up.child(role)
            assert child is not None
            child.kill()
            await until_it_answers(corral, "back", "v2")
        history = await corral.functions.history("back")

    assert [each.action for each in history.changes] == ["revision-deployed", "revision-deployed"]


async def test_while_the_scheduler_is_dead_functions_answer_as_before(up: CorralProcess) -> None:
    async with Corral(up.url) as corral:
        await deploy(corral, "alone", "v1")
        await until_it_answers(corral, "alone", "v1")
        function = await corral.functions.get("alone")
        scheduler = up.child("scheduler")
        assert scheduler is not None
        scheduler.suspend()
        try:
            async with corral.functions.call(function) as answer:
                status = answer.status
        finally:
            scheduler.resume()
        await until_it_answers(corral, "alone", "v1")

    assert status == 200
