"""The front on the wire: bodies both ways, limits, queues, retries, and clients that do not behave."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import psutil
import pytest
import pytest_asyncio

from corral.functions.front.limits import FrontConfig
from corral.functions.model import InstancePhase, Limits
from corral.functions.routing import Backend
from corral.testing import wasm_programs as programs
from corral.testing.function_rig import FunctionRig, open_rig, parse_answer
from corral.testing.wasm_programs import assemble

pytestmark = pytest.mark.asyncio(loop_scope="module")
FRONT: Final = FrontConfig(listen="127.0.0.1:0", head_s=0.5, idle_s=1.0, head_bytes=8192, headers=50, drain_s=1.0)
SLOW: Final = programs.command(
    """(i32.store (i32.const 56) (i32.const 1)) (i64.store (i32.const 64) (i64.const 150000000))
    (drop (call $poll_oneoff (i32.const 40) (i32.const 128) (i32.const 1) (i32.const 200))) (call $head)"""
)
"""Answers after 150 ms."""
SLOWER: Final = SLOW.replace("150000000", "800000000")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FunctionRig]:
    async with open_rig(tmp_path_factory.mktemp("front"), front=FRONT) as opened:
        for name, program in {"hello": programs.hello(), "echo": programs.ECHO, "slow": SLOW}.items():
            await opened.deploy(name, await opened.spec(assemble(program), limits=Limits(cpu_s=5)))
        yield opened


def problem(body: bytes) -> str:
    return str(msgspec.json.decode(body)["code"])


class TestRoutes:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/functions/hello", 200),
            ("/functions/hello/v1/sub/path", 200),
            ("/functions/hello@v1", 200),
            ("/functions/nobody", 404),
            ("/functions/hello@v9", 404),
            ("/", 404),
            ("/tenants/other/functions/hello", 404),
            ("/functions/..%2fhello", 404),
            ("/functions/", 404),
        ],
    )
    async def test_a_path_leads_to_its_function_or_nowhere(self, rig: FunctionRig, path: str, status: int) -> None:
        assert (await rig.get(path)).status == status

    async def test_a_changed_split_is_obeyed_at_once_and_every_answer_says_its_revision(self, rig: FunctionRig) -> None:
        first = await rig.deploy("moving", await rig.spec(assemble(programs.hello("one"))))
        second = await rig.deploy("moving", await rig.spec(assemble(programs.hello("two"))), revision="v2")

        for old, new, text in ((first, second, b"two\n"), (second, first, b"one\n")) * 3:
            old.percent, new.percent = 0, 100
            await rig.route()
            answers = [await rig.get("/functions/moving") for _ in range(5)]
            assert {(each.body, each.headers["x-corral-revision"]) for each in answers} == {(text, new.key.revision)}


class TestClientsThatDoNotBehave:
    @pytest.mark.parametrize(
        "request_",
        [
            b"nonsense\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n",
            b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
            b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n",
            b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"GET http://elsewhere/functions/hello HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ],
    )
    async def test_what_is_no_request_gets_400_and_the_connection_closes(
        self, rig: FunctionRig, request_: bytes
    ) -> None:
        assert (await rig.raw(request_)).status == 400

    async def test_a_flood_of_headers_gets_431(self, rig: FunctionRig) -> None:
        many = b"".join(b"X-%d: y\r\n" % n for n in range(200))
        long = b"X-Long: " + b"a" * 20_000 + b"\r\n"
        for headers in (many, long):
            answer = await rig.raw(b"GET /functions/hello HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
            assert answer.status == 431

    async def test_a_head_that_never_ends_gets_431_before_it_fills_the_memory(self, rig: FunctionRig) -> None:
        answer = await rig.raw(b"GET /functions/hello HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000)

        assert answer.status == 431

    async def test_a_slow_head_gets_408(self, rig: FunctionRig) -> None:
        assert (await rig.raw(b"GET /functions/hello HTTP/1.1\r\nHo")).status == 408

    async def test_a_slow_body_ends_at_the_function_s_deadline(self, rig: FunctionRig) -> None:
        await rig.deploy("impatient", await rig.spec(assemble(programs.ECHO), limits=Limits(wall_s=0.3)))

        with suppress(ValueError):  # its answer may have begun; then it is cut off
            answer = await rig.raw(b"POST /functions/impatient HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
            assert answer.status == 504

    async def test_a_body_that_is_announced_too_large_gets_413_before_it_is_sent(self, rig: FunctionRig) -> None:
        head = b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n"

        answer = await rig.raw(head)

        assert (answer.status, problem(answer.body)) == (413, "body-too-large")

    async def test_a_body_that_turns_out_too_large_gets_413(self, rig: FunctionRig) -> None:
        await rig.deploy("small", await rig.spec(assemble(programs.SILENT), limits=Limits(body_bytes=1000)))
        head = b"POST /functions/small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

        answer = await rig.raw(head + b"7d0\r\n" + b"x" * 2000 + b"\r\n")

        assert answer.status == 413

    async def test_a_client_that_sends_on_still_hears_why_it_was_refused(self, rig: FunctionRig) -> None:
        answer = await rig.get("/functions/echo", method="POST", body=bytes(16 << 20))

        assert (answer.status, problem(answer.body)) == (413, "body-too-large")

    async def test_a_large_body_passes_through_a_small_window(self, rig: FunctionRig) -> None:
        limits = Limits(body_bytes=1 << 30, response_bytes=1 << 30, cpu_s=30, wall_s=60)
        await rig.deploy("large", await rig.spec(assemble(programs.ECHO), limits=limits))
        before, size, got, tail = _front_memory(rig), 32 << 20, 0, b""
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        head = b"POST /functions/large HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
        writer.write(head + bytes(size))

        while piece := await reader.read(1 << 20):
            got += len(piece)
            tail = (tail + piece)[-5:]
        writer.close()

        assert got > size
        assert tail == b"0\r\n\r\n"
        assert _front_memory(rig) - before < 16 << 20

    async def test_a_client_that_leaves_cancels_its_request(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("left", await rig.spec(assemble(programs.SLEEP), limits=Limits(wall_s=60)))
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"GET /functions/left HTTP/1.1\r\nHost: a\r\n\r\n")
        await rig.until(lambda: rig.report(deployed.instances[0]).stats.in_flight == 1)

        writer.close()

        await rig.until(lambda: rig.report(deployed.instances[0]).stats.in_flight == 0)

    async def test_a_client_that_does_not_read_stops_the_function_and_not_the_front(self, rig: FunctionRig) -> None:
        limits = Limits(wall_s=1.0, cpu_s=1.0, response_bytes=1 << 40)
        deployed = await rig.deploy("flood", await rig.spec(assemble(programs.FLOOD), limits=limits))
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
        writer.write(b"GET /functions/flood HTTP/1.1\r\nHost: a\r\n\r\n")

        await rig.until(lambda: rig.report(deployed.instances[0]).stats.timeouts == 1)

        writer.close()
        assert (await rig.get("/functions/hello")).status == 200

    async def test_what_a_request_asks_of_the_hop_is_not_what_the_program_hears(self, rig: FunctionRig) -> None:
        await rig.deploy("world", await rig.spec(assemble(programs.ENVIRONMENT)))
        forged = "X-Corral-Instance: x\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\nTE: trailers\r\n"

        body = (await rig.get("/functions/world", headers=forged)).body

        assert b"HTTP_X_FORWARDED_FOR=1.2.3.4, 127.0.0.1\0" in body
        assert b"6.6.6.6" not in body
        assert b"HTTP_TE=" not in body
        assert b"HTTP_X_CORRAL_INSTANCE" not in body


class TestConnections:
    async def test_requests_that_are_sent_ahead_are_answered_in_their_order(self, rig: FunctionRig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        bodies = [b"%d" % n * 2000 for n in range(30)]
        for body in bodies:
            writer.write(
                b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

        for body in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await _body(reader, head) == body
        writer.close()

    async def test_an_idle_connection_is_closed(self, rig: FunctionRig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)

        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()

    async def test_a_client_that_waits_for_100_gets_it(self, rig: FunctionRig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"

        writer.write(b"abc")

        assert await _body(reader, await reader.readuntil(b"\r\n\r\n")) == b"abc"
        writer.close()

    async def test_a_client_that_wants_another_protocol_is_answered_in_this_one(self, rig: FunctionRig) -> None:
        upgrade = b"Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

        assert (await rig.raw(b"GET /functions/hello HTTP/1.1\r\n" + upgrade)).status == 200

    async def test_head_has_the_length_and_no_body(self, rig: FunctionRig) -> None:
        answer = await rig.get("/functions/hello", method="HEAD")

        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "13", b"")

    async def test_a_1_0_client_gets_an_answer_that_ends_with_the_connection(self, rig: FunctionRig) -> None:
        answer = await rig.raw(b"POST /functions/echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")

        assert (answer.status, answer.body) == (200, b"hello")


class TestPlaces:
    async def test_requests_wait_for_a_place_and_beyond_the_queue_get_429(self, rig: FunctionRig) -> None:
        limits = Limits(concurrency=2, queue=3, queue_s=5.0)
        await rig.deploy("narrow", await rig.spec(assemble(SLOW), limits=limits))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get("/functions/narrow")) for _ in range(12)]
        answers = [task.result() for task in tasks]

        refused = [each for each in answers if each.status == 429]
        assert [each.status for each in answers].count(200) == 5
        assert len(refused) == 7
        assert {(each.headers["retry-after"], problem(each.body)) for each in refused} == {("1", "queue-full")}
        assert (await rig.get("/functions/narrow")).status == 200

    async def test_a_request_waits_no_longer_than_it_may(self, rig: FunctionRig) -> None:
        limits = Limits(concurrency=1, queue=3, queue_s=0.1, wall_s=2.0)
        await rig.deploy("late", await rig.spec(assemble(SLOW), limits=limits))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get("/functions/late")) for _ in range(3)]

        assert sorted(task.result().status for task in tasks)[-1] == 429

    async def test_more_requests_per_second_than_allowed_get_429(self, rig: FunctionRig) -> None:
        await rig.deploy("rated", await rig.spec(assemble(programs.hello()), limits=Limits(requests_per_s=2)))

        statuses = [(await rig.get("/functions/rated")).status for _ in range(6)]

        assert statuses[:2] == [200, 200]
        assert 429 in statuses

    async def test_a_revision_without_an_instance_tells_its_demand_and_waits_for_one(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("asleep", await rig.spec(assemble(programs.hello())), replicas=0)

        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(rig.get("/functions/asleep"))
            await rig.until(lambda: [each.waiting for each in rig.host.demands() if each.key == deployed.key] == [1])
            await rig.add_instance(deployed)
            await rig.route()

        assert (waiting.result().status, waiting.result().headers["x-corral-start"]) == (200, "cold")

    async def test_without_any_instance_it_ends_in_503(self, rig: FunctionRig) -> None:
        await rig.deploy("gone", await rig.spec(assemble(SLOW), limits=Limits(queue_s=0.1)), replicas=0)

        answer = await rig.get("/functions/gone")

        assert (answer.status, problem(answer.body)) == (503, "no-instance")

    async def test_two_instances_share_the_load(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("shared", await rig.spec(assemble(SLOW), limits=Limits(concurrency=4)), replicas=2)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get("/functions/shared")) for _ in range(8)]

        seen = [task.result().headers["x-corral-instance"] for task in tasks]
        assert {seen.count(each) for each in deployed.instances} == {4}


class TestItsPort:
    async def test_one_that_is_taken_is_named_with_the_reason_and_used_when_it_is_free(self, tmp_path: Path) -> None:
        with socket.socket() as taker:
            taker.bind(("127.0.0.1", 0))
            taker.listen()
            address = f"127.0.0.1:{taker.getsockname()[1]}"
            front = FrontConfig(listen=address, drain_s=1.0)
            async with open_rig(tmp_path, front=front) as rig:
                taken = rig.host.capacity()
                taker.close()
                await rig.until(lambda: rig.host.capacity().front)
                free = rig.host.capacity()

        assert taken.front_trouble == f"engine.front.listen, {address}, cannot be listened on: Address already in use"
        assert (free.front, free.front_trouble) == (f"http://{address}", "")


class TestInstancesThatDie:
    async def test_an_idempotent_request_is_tried_once_more_elsewhere(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(SLOWER), tenant="dying", limits=Limits(stack_bytes=600 * 1024))
        other = await rig.spec(assemble(SLOWER), tenant="dying", limits=Limits(stack_bytes=700 * 1024))
        dying = await rig.deploy("twin", spec, tenant="dying")
        spare = await rig.deploy("spare", other, tenant="dying")  # a process of its own
        dying.instances += spare.instances  # the same function to the front
        await rig.route()
        path = "/tenants/dying/functions/twin"

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get(path)) for _ in range(6)]
            await rig.until(lambda: rig.report(dying.instances[0]).stats.in_flight > 0)
            os.kill(rig.report(dying.instances[0]).pid, 9)

        assert {task.result().status for task in tasks} == {200}

    async def test_a_post_is_not(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(SLOWER), tenant="fragile")
        deployed = await rig.deploy("once", spec, tenant="fragile")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(rig.get("/tenants/fragile/functions/once", method="POST", body=b"x"))
            await rig.until(lambda: rig.report(deployed.instances[0]).stats.in_flight > 0)
            os.kill(rig.report(deployed.instances[0]).pid, 9)

        assert (task.result().status, problem(task.result().body)) == (502, "instance-lost")

    async def test_what_is_in_flight_ends_while_an_instance_is_drained(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("drained", await rig.spec(assemble(SLOWER)))
        old = deployed.instances[0]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get("/functions/drained")) for _ in range(4)]
            await rig.until(lambda: rig.report(old).stats.in_flight == 4)
            await rig.add_instance(deployed)
            deployed.instances.remove(old)
            await rig.route()
            await rig.host.stop(old, drain_s=5)
            after = await rig.get("/functions/drained")

        assert {task.result().status for task in tasks} == {200}
        assert after.headers["x-corral-instance"] != old
        await rig.until(lambda: rig.report(old).phase is InstancePhase.STOPPED)

    async def test_a_front_that_dies_is_started_again_with_its_routes(self, rig: FunctionRig) -> None:
        pid = rig.host.front_pid
        assert pid is not None

        os.kill(pid, 9)

        await rig.until(lambda: rig.host.front_pid not in (None, pid))
        await rig.until(lambda: rig.host.routes_in_use()[1] > 0)
        assert (await rig.get("/functions/hello")).body == b"hello, world\n"


def _front_memory(rig: FunctionRig) -> int:
    assert rig.host.front_pid is not None
    return int(psutil.Process(rig.host.front_pid).memory_info().rss)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"chunked" not in head:
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return await reader.readexactly(int(length.partition(b":")[2]))
    data = head
    while not data.endswith(b"\r\n0\r\n\r\n"):
        data += await reader.readuntil(b"\r\n")
    return parse_answer(data).body


class TestOtherWorkers:
    async def test_an_instance_of_another_worker_is_reached_through_its_front(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        front = FrontConfig(listen="127.0.0.1:0", public="127.0.0.1", drain_s=1.0)
        async with (
            open_rig(tmp_path_factory.mktemp("near"), front=front) as near,
            open_rig(tmp_path_factory.mktemp("far"), front=front) as far,
        ):
            spec = await far.spec(assemble(programs.ECHO), limits=Limits(cpu_s=5, queue_s=0.2))
            there = await far.deploy("echo", spec, revision="v7")
            instance = there.instances[0]
            address = far.report(instance).address
            assert address.endswith(f"@127.0.0.1:{far.port}")
            here = await near.deploy("echo", spec, revision="v7", replicas=0)
            await near.route(extra={here.key: (Backend(instance=instance, worker="far", address=address),)})
            body = os.urandom(1 << 20)

            answer = await near.get("/functions/echo/x", method="POST", body=body, headers="X-Request-Id: over\r\n")
            alone = await near.get("/functions/echo", headers="X-Corral-Hop: 1\r\n")

        assert (answer.status, answer.body) == (200, body)
        assert (answer.headers["x-corral-revision"], answer.headers["x-corral-instance"]) == ("v7", instance)
        assert answer.headers["x-request-id"] == "over"
        assert alone.status in (429, 503)  # a request that came from a front is not passed on
