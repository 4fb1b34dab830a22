"""Compiles on workers: over real gRPC, TLS and tokens, with a real compiler, and everything that can go wrong."""

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from corral.actions.model import Performed
from corral.actions.runner import ROOT
from corral.compile import closure
from corral.compile.files import FileTable
from corral.compile.model import Outcome
from corral.compile.ports import CompileAnswer, CompileRequest
from corral.compile.remote.compiler import FleetCompiler
from corral.compile.remote.layout import PLACE, CannotShip
from corral.compile.remote.model import RemoteConfig, SourceMode
from corral.fleet.tokens import RouteClaims, SigningKey
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, DependencyError, InvalidSpec, NoFeasibleWorker, WorkerLost
from corral.testing.compiles import compile_request
from corral.testing.worker_doors import FakeRoutes, FakeWorker, dies, open_worker
from corral.wire.sessions import session_metadata
from corral.wire.transport import ClientTls, WireLimits, open_channel
from corral.wire.v1 import door_pb2
from corral.wire.v1.door_pb2_grpc import DoorStub

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")


@dataclass
class _Fleet:
    workers: list[FakeWorker]
    routes: FakeRoutes
    compiler: FleetCompiler
    config: RemoteConfig


@asynccontextmanager
async def _fleet(
    folder: Path, *, workers: int = 1, places: int = 4, within_s: float = 600.0, **more: Any
) -> AsyncIterator[_Fleet]:
    signing, clock = SigningKey(), SystemClock()
    config = RemoteConfig(tenant="acme", **more)
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(
                open_worker(folder / f"w{n}", f"wrk-{n}", signing, places=places, answer_within_s=within_s)
            )
            for n in range(workers)
        ]
        group = await stack.enter_async_context(asyncio.TaskGroup())

        def start(work: Coroutine[Any, Any, None]) -> None:
            group.create_task(work)

        routes = FakeRoutes(signing, clock, opened)
        compiler = FleetCompiler(config, routes, clock, start)
        stack.push_async_callback(compiler.close)
        yield _Fleet(opened, routes, compiler, config)


def _project(folder: Path) -> Path:
    project = folder / "project"
    (project / "inc").mkdir(parents=True)
    (project / "src").mkdir()
    (project / ".corral").touch()
    (project / "inc" / "x.h").write_text('#include "y.h"\n#define X Y\n')
    (project / "inc" / "y.h").write_text("#define Y 1\n")
    (project / "src" / "a.c").write_text(
        '#include <stdio.h>\n#include "x.h"\nint f(void) { int unused; return puts(__FILE__) + X; }\n'
    )
    (project / "inc" / "part.inc").write_text("\tnop\n")
    (project / "src" / "b.S").write_text(
        '#include "x.h"\n\t.globl f\nf:\tmov $X, %eax\n\t.include "inc/part.inc"\n\tret\n\t.incbin "inc/y.h"\n'
    )
    return project


def _request(project: Path, line: str) -> CompileRequest:
    return compile_request(project, line.format(root=project).split())


def _hashes() -> FileTable:
    return FileTable(closure.traits, SystemClock().now_s)


async def _compile(fleet: _Fleet, project: Path, line: str) -> CompileAnswer:
    return await fleet.compiler.compile(_request(project, line), _hashes())


def _locally(project: Path, line: str) -> tuple[bytes, bytes, bytes]:
    argv = line.format(root=project).split()
    done = subprocess.run(
        argv, cwd=project, capture_output=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    )
    rules = project / "out.d"
    return (project / "out.o").read_bytes(), done.stderr, rules.read_bytes() if rules.exists() else b""


def test_inputs_lie_where_the_runner_puts_them() -> None:
    assert PLACE == ROOT


@pytest.mark.parametrize(
    "line",
    [
        "gcc -Wall -Iinc -c src/a.c -o out.o",
        "gcc -Wall -g -Iinc -MD -c src/a.c -o out.o",
        "gcc -g -O2 -I{root}/inc -MMD -MP -c {root}/src/a.c -o out.o",
        "gcc -g -ffile-prefix-map={root}=. -Iinc -c src/a.c -o out.o",
        "gcc -Iinc -Wp,-MMD,out.d -c src/a.c -o out.o",
        "gcc -Wmissing-include-dirs -Isrc/../inc -include inc/y.h -c src/a.c -o out.o",
        "gcc -g -Iinc -MMD -c src/b.S -o out.o",
        "g++ -g -x c++ -Iinc -c {root}/src/a.c -o out.o",
        "clang -Wall -g -Iinc -MD -c src/a.c -o out.o",
        "clang -g -O2 -I{root}/inc -MMD -MP -c {root}/src/a.c -o out.o",
        "clang -Iinc -c src/b.S -o out.o",
    ],
)
async def test_an_object_from_a_worker_is_the_one_that_would_be_made_here(line: str, tmp_path: Path) -> None:
    compiler = line.partition(" ")[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    project = _project(tmp_path)
    made, stderr, rules = _locally(project, line)

    async with _fleet(tmp_path, paranoid=True) as fleet:
        answer = await _compile(fleet, project, line)

    assert answer.outcome is Outcome.REMOTE_RUN
    assert (answer.exit_code, answer.files["object"] == made, answer.stderr) == (0, True, stderr)
    assert closure.parse_dependencies(answer.files.get("dependencies", b"").decode()) == closure.parse_dependencies(
        rules.decode()
    )
    assert answer.files.get("dependencies", b"").split(b":")[0] == rules.split(b":")[0]


async def test_an_unchanged_compile_sends_nothing_and_a_changed_header_only_itself(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        await _compile(fleet, project, line)
        await fleet.workers[0].servicer.wait_told()
        sent = fleet.compiler.figures.uploaded_blobs
        again = await _compile(fleet, project, line)
        assert fleet.compiler.figures.uploaded_blobs == sent == 3
        (project / "inc" / "y.h").write_text("#define Y 22\n")
        before = fleet.compiler.figures.uploaded_bytes
        changed = await _compile(fleet, project, line)

        assert (again.outcome, changed.outcome) == (Outcome.REMOTE_HIT, Outcome.REMOTE_RUN)
        assert fleet.compiler.figures.uploaded_blobs == sent + 1
        assert fleet.compiler.figures.uploaded_bytes - before == len("#define Y 22\n")
        assert fleet.workers[0].runner.runs == 4  # two of them found what is missing


async def test_who_does_not_ask_the_preprocessor_and_who_knows_what_is_read_have_one_action(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        first = await _compile(fleet, project, line)
        await fleet.workers[0].servicer.wait_told()
        known = replace(_request(project, line), include_set=first.include_set)
        second = await fleet.compiler.compile(known, _hashes())

        assert [first.outcome, second.outcome] == [Outcome.REMOTE_RUN, Outcome.REMOTE_HIT]


async def test_what_a_compile_might_read_goes_along_and_is_not_counted_as_read(tmp_path: Path) -> None:
    project = _project(tmp_path)
    (project / "inc" / "windows.h").write_text("#define W 1\n")
    (project / "inc" / "y.h").write_text("#ifdef _WIN32\n#include <windows.h>\n#endif\n#define Y 1\n")
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        answer = await _compile(fleet, project, line)

        assert fleet.compiler.figures.uploaded_blobs == 4
        assert fleet.compiler.figures.repeated == 0
        assert [path for path, _ in answer.include_set.files if path[0] != "/"] == ["src/a.c", "inc/x.h", "inc/y.h"]


async def test_a_compile_that_reads_what_nobody_foresaw_is_done_once_more_with_all_of_it(tmp_path: Path) -> None:
    project = _project(tmp_path)
    (project / "src" / "a.c").write_text("#include WHICH\nint f(void) { return X; }\n")
    line = "gcc -Iinc -Wp,-DWHICH=<x.h> -c src/a.c -o out.o"

    made, _, _ = _locally(project, line)
    async with _fleet(tmp_path) as fleet:
        answer = await _compile(fleet, project, line)

        assert (answer.exit_code, answer.files["object"]) == (0, made)
        assert fleet.compiler.figures.repeated == 1
        assert [path for path, _ in answer.include_set.files if path[0] != "/"] == ["src/a.c", "inc/x.h", "inc/y.h"]


async def test_a_header_that_comes_to_lie_before_another_one_is_the_one_that_is_taken(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Ilater -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        first = await _compile(fleet, project, line)
        assert "later/x.h" in first.include_set.absent
        (project / "later").mkdir()  # which the compiler did not even name as searched before
        (project / "later" / "x.h").write_text("#define X 33\n")
        made, _, _ = _locally(project, line)
        second = await _compile(fleet, project, line)
        (project / "src" / "x.h").write_text("#define X 44\n")
        nearest, _, _ = _locally(project, line)
        third = await _compile(fleet, project, line)

        assert second.files["object"] == made != first.files["object"]
        assert third.files["object"] == nearest != made
        assert fleet.compiler.figures.repeated == 0


async def test_a_hit_brings_everything_that_the_run_brought(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Wall -Iinc -MD -c src/a.c -o out.o"

    async with _fleet(tmp_path, paranoid=True) as fleet:
        first = await _compile(fleet, project, line)
        await fleet.workers[0].servicer.wait_told()
        second = await _compile(fleet, project, line)

        assert second.outcome is Outcome.REMOTE_HIT
        assert (second.files, second.stderr) == (first.files, first.stderr)
        assert set(second.files) == {"object", "dependencies"}
        assert [row.phase for row in fleet.workers[0].results.rows] == ["completed"]


async def test_a_hit_says_what_the_run_took_and_which_audit_row_tells_of_it(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        run = await _compile(fleet, project, line)
        await fleet.workers[0].servicer.wait_told()
        hit = await _compile(fleet, project, line)

        assert (run.outcome, hit.outcome) == (Outcome.REMOTE_RUN, Outcome.REMOTE_HIT)
        assert hit.duration_s == run.duration_s > 0
        assert hit.execution == run.execution == fleet.workers[0].results.rows[0].task_id


@pytest.mark.parametrize("macro", ["__DATE__", "__TIMESTAMP__", "__TIME__"])
async def test_what_tells_the_time_is_compiled_here(macro: str, tmp_path: Path) -> None:
    """An equal action tomorrow would be answered with the object of today."""
    project = _project(tmp_path)
    (project / "src" / "a.c").write_text(f"const char *t = {macro};\n")

    async with _fleet(tmp_path) as fleet:
        with pytest.raises(CannotShip):
            await _compile(fleet, project, "gcc -c src/a.c -o out.o")
        assert fleet.routes.asked == []


async def test_a_clock_of_the_client_that_is_far_off_changes_nothing(tmp_path: Path) -> None:
    class Tomorrow(SystemClock):
        def now_s(self) -> float:
            return super().now_s() + 86_400

    project = _project(tmp_path)

    async with _fleet(tmp_path) as fleet, asyncio.TaskGroup() as group:

        def start(work: Coroutine[Any, Any, None]) -> None:
            group.create_task(work)

        compiler = FleetCompiler(fleet.config, fleet.routes, Tomorrow(), start)
        answer = await compiler.compile(_request(project, "gcc -Iinc -c src/a.c -o out.o"), _hashes())
        await compiler.close()

    assert answer.outcome is Outcome.REMOTE_RUN


async def test_two_checkouts_share_what_does_not_name_them(tmp_path: Path) -> None:
    one, other = _project(tmp_path / "1"), _project(tmp_path / "2")
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path) as fleet:
        await _compile(fleet, one, line)
        await fleet.workers[0].servicer.wait_told()
        assert (await _compile(fleet, other, line)).outcome is Outcome.REMOTE_HIT
        assert (await _compile(fleet, other, "gcc -g " + line[4:])).outcome is Outcome.REMOTE_RUN


async def test_a_bad_source_gets_the_compilers_own_words_and_is_never_kept(tmp_path: Path) -> None:
    project = _project(tmp_path)
    (project / "src" / "a.c").write_text("int f(void) { return nothing; }\n")

    async with _fleet(tmp_path) as fleet:
        for _ in range(2):
            answer = await _compile(fleet, project, "gcc -c src/a.c -o out.o")
            assert (answer.exit_code, answer.outcome) == (1, Outcome.REMOTE_RUN)
            assert b"src/a.c:1:22: error" in answer.stderr
        assert not fleet.workers[0].results.kept


async def test_preprocessed_sources_compile_to_an_object_that_works(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Wall -Werror -Wno-unused-variable -Iinc -MMD -DZ=1 -c src/a.c -o out.o"
    made, _, rules = _locally(project, line)

    async with _fleet(tmp_path, source_mode=SourceMode.PREPROCESSED) as fleet:
        answer = await _compile(fleet, project, line)

    assert answer.exit_code == 0
    assert answer.files["object"] == made
    assert answer.files["dependencies"] == rules


Change = Callable[[RouteClaims], RouteClaims]


@pytest.mark.parametrize(
    "change",
    [
        lambda claims: replace(claims, iat=claims.iat - 900, exp=claims.exp - 900),
        lambda claims: replace(claims, tenant="evil"),
        lambda claims: replace(claims, worker="wrk-9"),
        lambda claims: replace(claims, image="sha256:1"),
        lambda claims: replace(claims, purpose="session"),
    ],
    ids=["expired", "other-tenant", "other-worker", "other-image", "other-purpose"],
)
async def test_a_token_for_something_else_opens_no_door(change: Change, tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path) as fleet:
        fleet.routes.change = change
        with pytest.raises(InvalidSpec, match="does not accept the scheduler's token"):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")
        assert fleet.workers[0].runner.runs == 0


def _forged(token: str) -> str:
    """The same words, named after the same key, signed with another one."""
    words = token.rpartition(".")[0]
    return f"{words}.{base64.urlsafe_b64encode(SigningKey().sign(words.encode())).rstrip(b'=').decode()}"


async def test_a_forged_token_opens_no_call_of_the_door(tmp_path: Path) -> None:
    async with _fleet(tmp_path) as fleet:
        fleet.routes.sign = lambda claims: _forged(fleet.routes.key.token(claims))
        (route,) = await fleet.routes.route(image="", slots=1, avoid=())
        channel = await open_channel(route.address, ClientTls(fingerprint=route.certificate_fingerprint), WireLimits())
        stub, metadata = DoorStub(channel), session_metadata(route.token)
        digest = str(Digest.of(b"x"))
        calls: list[Any] = [
            stub.Probe(door_pb2.ProbeRequest(action=digest, tenant="acme"), metadata=metadata),
            stub.FindMissing(door_pb2.DoorMissingRequest(digests=[digest], tenant="acme"), metadata=metadata),
            stub.Execute(door_pb2.ExecuteRequest(action=digest, tenant="acme", blobs=[b"x"]), metadata=metadata),
            stub.Upload(
                iter([door_pb2.UploadRequest(digest=digest, tenant="acme", data=b"x", end=True)]), metadata=metadata
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Fetch(door_pb2.FetchRequest(digest=digest, tenant="acme"), metadata=metadata):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await fleet.workers[0].blobs.find_missing("acme", [Digest.of(b"x")])
        await channel.close(None)


async def test_a_blob_whose_digest_lies_is_refused_and_the_next_one_is_taken(tmp_path: Path) -> None:
    async with _fleet(tmp_path) as fleet:
        (route,) = await fleet.routes.route(image="", slots=1, avoid=())
        channel = await open_channel(route.address, ClientTls(fingerprint=route.certificate_fingerprint), WireLimits())
        lie, truth = str(Digest.of(b"good")), str(Digest.of(b"true"))
        messages = [
            door_pb2.UploadRequest(digest=lie, tenant="acme", data=b"e"),
            door_pb2.UploadRequest(data=b"vil", end=True),
            door_pb2.UploadRequest(digest=truth, tenant="acme", data=b"true", end=True),
        ]
        answer = await DoorStub(channel).Upload(iter(messages), metadata=session_metadata(route.token))

        assert (list(answer.rejected), answer.blobs, answer.bytes) == ([lie], 1, 4)
        missing = await fleet.workers[0].blobs.find_missing("acme", [Digest.of(b"good"), Digest.of(b"true")])
        assert missing == {Digest.of(b"good")}
        await channel.close(None)


async def test_a_worker_that_dies_is_replaced_once(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=2) as fleet:
        fleet.workers[0].runner.before = dies
        answer = await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")

        assert (answer.worker, answer.exit_code) == ("wrk-1", 0)
        assert fleet.routes.asked == [(), ("wrk-0",)]
        assert fleet.compiler.figures.retries == 1


class _Mortal:
    """Passes bytes on to a worker until so many have gone through; then the worker is gone for good."""

    def __init__(self, target: str, bytes_left: int) -> None:
        self._host, self._port = "", 0
        self._left = bytes_left
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""
        self.lead_to(target)

    def lead_to(self, target: str) -> None:
        """Another worker is here now."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._die()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            self._die()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._left <= 0:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, far_writer}
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pump(reader, far_writer))
            both.create_task(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(512):
                self._left -= len(data)
                if self._left <= 0:
                    self._die()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            return  # it is dead already
        writer.close()

    def _die(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@pytest.mark.parametrize("bytes_left", [0, 1_500, 5_000, 7_000, 9_000, 11_000])
async def test_a_worker_may_die_at_any_step(bytes_left: int, tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Wall -Iinc -MD -c src/a.c -o out.o"
    made, stderr, _ = _locally(project, line)

    async with _fleet(tmp_path, workers=2) as fleet:
        mortal = _Mortal(fleet.workers[0].address, bytes_left)
        async with mortal.living():
            fleet.workers[0].address = mortal.address
            answer = await _compile(fleet, project, line)

        assert (answer.files["object"], answer.stderr) == (made, stderr)
        assert answer.worker == "wrk-1"
        assert fleet.compiler.slots.in_use == 0


async def test_when_the_second_worker_dies_too_it_is_told(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=2) as fleet:
        for worker in fleet.workers:
            worker.runner.before = dies
        with pytest.raises(DependencyError):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")
        assert fleet.compiler.slots.in_use == 0


async def test_a_worker_that_nobody_reaches_or_that_shows_another_certificate_is_lost(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=2) as fleet:
        fleet.workers[0].fingerprint = "0" * 64
        assert (await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")).worker == "wrk-1"
    (tmp_path / "other").mkdir()
    async with _fleet(tmp_path / "other") as fleet:
        fleet.workers[0].address = "127.0.0.1:1"
        with pytest.raises(WorkerLost):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")


async def test_a_worker_that_comes_back_with_another_certificate_is_dialed_anew(tmp_path: Path) -> None:
    project = _project(tmp_path)
    line = "gcc -Iinc -c src/a.c -o out.o"

    async with _fleet(tmp_path, workers=2) as fleet:
        old, new = fleet.workers
        before, after = old.address, new.address
        async with (place := _Mortal(before, 10**9)).living():
            old.address = new.address = place.address
            fleet.routes.workers = [old]
            await _compile(fleet, project, line)
            place.lead_to(after)  # the same address, and another process behind it
            fleet.routes.workers = [new]
            answer = await _compile(fleet, project, line)

        assert (answer.worker, answer.exit_code) == ("wrk-1", 0)
        assert fleet.compiler.figures.retries == 1


async def test_a_full_worker_says_so_at_once_and_another_is_asked(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=2) as fleet:
        fleet.workers[0].places.busy = 4
        assert (await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")).worker == "wrk-1"


async def test_a_compile_that_never_ends_is_given_up_by_two_workers_and_told(tmp_path: Path) -> None:
    async def never(*_: object, **__: object) -> Performed:
        await asyncio.Event().wait()
        raise AssertionError

    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=2, within_s=0.05) as fleet:
        for worker in fleet.workers:
            worker.runner.run = never  # type: ignore[method-assign]
        with pytest.raises(DependencyError, match=r"longer than 0\.05 s \(worker_door\.answer_within_s\)"):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")

        assert fleet.compiler.figures.retries == 1
        assert [worker.places.busy for worker in fleet.workers] == [0, 0]


async def test_a_worker_counts_a_compile_while_it_runs(tmp_path: Path) -> None:
    project = _project(tmp_path)
    seen: list[int] = []

    async with _fleet(tmp_path) as fleet:
        worker = fleet.workers[0]
        worker.runner.before = lambda: seen.append(worker.places.busy)
        await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")

        assert (set(seen), worker.places.busy) == ({1}, 0)


async def test_calls_of_neighbours_survive_that_a_worker_is_found_full(tmp_path: Path) -> None:
    project = _project(tmp_path)
    for n in range(6):
        (project / "src" / f"f{n}.c").write_text(f"int f{n};\n")

    async with _fleet(tmp_path, places=1) as fleet:
        async with asyncio.TaskGroup() as group:
            compiles = [group.create_task(_outcome(fleet, project, f"gcc -c src/f{n}.c -o out.o")) for n in range(6)]
        ended = [each.result() for each in compiles]

    assert ended.count("remote-run") >= 1
    assert set(ended) <= {"remote-run", "pool-exhausted"}


async def _outcome(fleet: _Fleet, project: Path, line: str) -> str:
    try:
        return (await _compile(fleet, project, line)).outcome.value
    except CorralError as error:
        return error.code


async def test_no_worker_at_all_is_told_as_such(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, workers=0) as fleet:
        with pytest.raises(NoFeasibleWorker):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")


async def test_another_tool_chain_on_the_worker_is_not_used(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path) as fleet:
        fleet.workers[0].toolchain.difference = "/usr/include/stdio.h"
        with pytest.raises(DependencyError, match=r"another tool chain: /usr/include/stdio\.h"):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")


async def test_paranoid_clients_take_nothing_that_its_worker_did_not_sign(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path, paranoid=True) as fleet:
        fleet.workers[0].result_key = SigningKey().public.hex()
        with pytest.raises(DependencyError, match="not signed by it"):
            await _compile(fleet, project, "gcc -Iinc -c src/a.c -o out.o")


@pytest.mark.parametrize(
    "line",
    [
        "gcc -c ../elsewhere.c -o out.o",
        "gcc -Ilink/.. -c link/../b.c -o out.o",
        "clang -g -Iinc -c src/b.S -o out.o",  # its line table names the directory, whatever the maps say
        "clang -g -grecord-gcc-switches -Iinc -c src/a.c -o out.o",  # the object holds its command line
    ],
)
async def test_what_lies_outside_or_would_be_another_one_on_a_worker_is_compiled_here(
    line: str, tmp_path: Path
) -> None:
    compiler = line.partition(" ")[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    project = _project(tmp_path)
    (tmp_path / "elsewhere.c").write_text("int e;\n")
    (tmp_path / "far" / "off").mkdir(parents=True)
    (tmp_path / "far" / "b.c").write_text("int b;\n")
    (project / "link").symlink_to(tmp_path / "far" / "off")

    async with _fleet(tmp_path) as fleet:
        with pytest.raises(CannotShip):
            await _compile(fleet, project, line)
        assert fleet.routes.asked == []


async def test_without_a_mark_on_the_project_nothing_is_sent(tmp_path: Path) -> None:
    project = _project(tmp_path)

    async with _fleet(tmp_path) as fleet:
        request = replace(_request(project, "gcc -Iinc -c src/a.c -o out.o"), root="")
        with pytest.raises(CorralError):
            await fleet.compiler.compile(request, _hashes())


async def test_a_parallel_build_asks_the_scheduler_a_few_times_only_and_gives_its_slots_back(tmp_path: Path) -> None:
    project = _project(tmp_path)
    for n in range(12):
        (project / "src" / f"f{n}.c").write_text(f"int f{n};\n")

    async with _fleet(tmp_path, places=12, idle_s=0.001) as fleet:
        async with asyncio.TaskGroup() as group:
            compiles = [group.create_task(_compile(fleet, project, f"gcc -c src/f{n}.c -o out.o")) for n in range(12)]
        assert all(each.result().exit_code == 0 for each in compiles)
        assert len(fleet.routes.asked) < 12
        assert fleet.compiler.slots.in_use == 0
        while fleet.routes.released == []:
            fleet.compiler.slots.tick()
            await asyncio.sleep(0.01)
