"""Behind the disk: a store that two machines share, stores that lie or are dead, and a fleet that can and cannot."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.compile.elsewhere import Elsewhere
from corral.compile.identity import of_image
from corral.compile.journal import Journal, read_journal
from corral.compile.limits import CompileConfig
from corral.compile.model import CompilerIdentity, IncludeSet, Outcome
from corral.compile.ports import CompileAnswer, CompileRequest, FileHashes
from corral.compile.records import Records
from corral.compile.rendezvous import bind, new_token, open_private, world
from corral.compile.server import Server
from corral.compile.service import CompileService
from corral.compile.store import ResultStore
from corral.compile.telling import Teller
from corral.entry import WRAPPER
from corral.kernel.clock import SystemClock
from corral.kernel.errors import WorkerLost
from corral.testing.compiles import Compiles, aged, compiles

pytestmark = [
    pytest.mark.skipif(not Path(WRAPPER).is_file(), reason=f"{WRAPPER} is not built: make native"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]
COMPILE = ("gcc", "-O2", "-MD", "-c", "main.c", "-o", "main.o")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def make_project(place: Path) -> Path:
    place.mkdir()
    (place / ".corral").touch()
    (place / "main.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello"); }\n')
    aged(place / "main.c")
    return place


# A shared store


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Compiles, Compiles]]:
    settings = {"CORRAL_COMPILE__SHARED__URL": f"file://{tmp_path}/bucket"}
    with compiles(settings) as one, compiles(settings) as other:
        yield one, other


def test_what_one_machine_compiled_another_finds(two: tuple[Compiles, Compiles], tmp_path: Path, project: Path) -> None:
    one, other = two
    elsewhere = make_project(tmp_path / "another")
    one.run(*COMPILE, cwd=project)
    one.events()
    one.stop()

    for _ in range(2):
        done = other.run(*COMPILE, cwd=elsewhere)
        assert (done.returncode, done.stderr) == (0, b"")

    assert other.outcomes() == ["shared-hit", "local-hit"]
    for name in ("main.o", "main.d"):
        assert (elsewhere / name).read_bytes() == (project / name).read_bytes()


def test_a_shared_store_that_lies_is_a_store_that_has_nothing(
    two: tuple[Compiles, Compiles], tmp_path: Path, project: Path
) -> None:
    one, other = two
    one.run(*COMPILE, cwd=project)
    one.stop()
    for file in (tmp_path / "bucket").rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)

    done = other.run(*COMPILE, cwd=project)

    assert (done.returncode, done.stderr) == (0, b"")
    assert other.outcomes() == ["local-run"]


def test_a_dead_shared_store_costs_one_try_and_no_build(project: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = {
            "CORRAL_COMPILE__SHARED__URL": "s3://bucket",
            "CORRAL_COMPILE__SHARED__OPTIONS__ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "CORRAL_COMPILE__SHARED__OPTIONS__ACCESS_KEY_ID": "k",
            "CORRAL_COMPILE__SHARED__OPTIONS__SECRET_ACCESS_KEY": "s",
            "CORRAL_COMPILE__SHARED__DEADLINE_S": "2",
        }
        with compiles(settings) as own:
            for _ in range(2):
                done = own.run(*COMPILE, cwd=project)
                assert (done.returncode, done.stderr) == (0, b"")
                own.events()

            assert own.outcomes() == ["local-run", "local-hit"]


# A fleet


class Fleet:
    """A peer of the real one: compiles in its own way, or fails in a given one."""

    def __init__(self, *, exit_code: int = 0, error: Exception | None = None, image: str = "") -> None:
        self.exit_code = exit_code
        self.error = error
        self.image = image
        self.requests: list[CompileRequest] = []
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    def identity_of(self, program: str, here: CompilerIdentity) -> CompilerIdentity:
        return of_image(program, here, self.image) if self.image else here

    async def compile(self, request: CompileRequest, hashes: FileHashes) -> CompileAnswer:
        self.requests.append(request)
        source = hashes.entry(f"{request.root}/main.c")
        assert source is not None
        self.asked.set()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return CompileAnswer(
            outcome=Outcome.REMOTE_RUN,
            exit_code=self.exit_code,
            stdout=b"",
            stderr=b"said the worker\n",
            files={} if self.exit_code else {"object": b"an object", "dependencies": b"main.o: main.c\n"},
            include_set=IncludeSet(files=(("main.c", source.hash),)),
            worker="wrk_1",
            duration_s=1.5,
        )

    async def close(self) -> None:
        pass


class Running:
    """A daemon within the test, so that its fleet can be ours."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"PATH": os.environ["PATH"], "CORRAL_CC_DIR": str(home / "run")}

    async def wrapper(self, cwd: Path) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            WRAPPER, *COMPILE, cwd=cwd, env=self.environment, stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await process.communicate()
        assert process.returncode is not None
        return process.returncode, stderr

    async def on_terminal(self, cwd: Path) -> bytes:
        """What the wrapper prints on one."""
        ours, theirs = os.openpty()
        try:
            environment = {**self.environment, "TERM": "xterm"}
            process = await asyncio.create_subprocess_exec(WRAPPER, *COMPILE, cwd=cwd, env=environment, stderr=theirs)
            assert await process.wait() == 0
            return os.read(ours, 10_000)
        finally:
            os.close(theirs)
            os.close(ours)


@asynccontextmanager
async def daemon(home: Path, fleet: Fleet) -> AsyncIterator[tuple[Running, CompileService]]:
    config, clock = CompileConfig(), SystemClock()
    store = ResultStore(home / "store", config)
    teller = Teller(Journal(home / "store", bytes_max=10**6), Records(home / "store", records_max=10), clock)
    service = CompileService(
        config, store=store, teller=teller, clock=clock, world=world(), elsewhere=Elsewhere(remote=fleet)
    )
    private = open_private(home / "run")
    listening, token = bind(private), new_token(private)
    stopping = asyncio.Event()

    async def control(asked: dict[str, object]) -> dict[str, object]:
        return {}

    server = Server(service, control, token=token, uid=os.geteuid(), connections_max=100)
    async with service.running(), asyncio.TaskGroup() as group:
        group.create_task(server.serve(listening, stopping))
        yield Running(home), service
        stopping.set()
    os.close(private)


def outcomes(home: Path) -> list[str]:
    return [event.outcome.value for event in read_journal(home / "store", since_s=0)]


def refused(home: Path, project: Path) -> str:
    record = Records(home / "store", records_max=10).read(str(project / "main.c"))
    assert record is not None
    return record.refused


async def test_a_worker_compiles_and_the_result_stays_here(tmp_path: Path, project: Path) -> None:
    fleet = Fleet()
    async with daemon(tmp_path, fleet) as (running, service):
        answers = [await running.wrapper(project) for _ in range(2)]
        await service.flush()

        assert answers == [(0, b"said the worker\n")] * 2
        assert (project / "main.o").read_bytes() == b"an object"
        assert (project / "main.d").read_bytes() == b"main.o: main.c\n"
        assert outcomes(tmp_path) == ["remote-run", "local-hit"]
        assert len(fleet.requests) == 1
        assert fleet.requests[0].root == str(project)


async def test_what_a_worker_said_is_shown_on_a_terminal_and_is_a_hit_for_a_log(tmp_path: Path, project: Path) -> None:
    async with daemon(tmp_path, Fleet()) as (running, service):
        shown = await running.on_terminal(project)
        await service.flush()
        again = await running.on_terminal(project)
        logged = await running.wrapper(project)
        await service.flush()

        assert shown == again == b"said the worker\r\n"
        assert logged == (0, b"said the worker\n")
        assert outcomes(tmp_path) == ["remote-run", "local-hit", "local-hit"]


async def test_a_compile_that_fails_on_a_worker_fails_here_and_is_never_stored(tmp_path: Path, project: Path) -> None:
    fleet = Fleet(exit_code=3)
    async with daemon(tmp_path, fleet) as (running, service):
        answers = [await running.wrapper(project) for _ in range(2)]
        await service.flush()

        assert answers == [(3, b"said the worker\n")] * 2
        assert outcomes(tmp_path) == ["failed", "failed"]
        assert len(fleet.requests) == 2


@pytest.mark.parametrize("error", [WorkerLost("no worker answers"), RuntimeError("a mistake of ours")])
async def test_without_the_fleet_the_compiler_compiles_here_and_one_line_says_so(
    tmp_path: Path, project: Path, error: Exception
) -> None:
    async with daemon(tmp_path, Fleet(error=error)) as (running, service):
        (project / "second.c").touch()
        status, stderr = await running.wrapper(project)
        await service.flush()

        assert status == 0
        assert (project / "main.o").read_bytes()[:4] == b"\x7fELF"
        if isinstance(error, WorkerLost):
            assert stderr == b"corral: not compiled by the fleet (no worker answers); compiling here\n"
            assert outcomes(tmp_path) == ["local-run"]
            assert refused(tmp_path, project) == "no worker answers"


async def test_an_image_has_results_of_its_own_and_what_is_compiled_here_meanwhile_is_never_taken_for_them(
    tmp_path: Path, project: Path
) -> None:
    fleet = Fleet(error=WorkerLost("no worker answers"), image="sha256:one")
    async with daemon(tmp_path, fleet) as (running, service):
        for _ in range(2):
            assert (await running.wrapper(project))[0] == 0
            await service.flush()
        here = (project / "main.o").read_bytes()
        fleet.error = None
        for _ in range(2):
            await running.wrapper(project)
            await service.flush()
        in_image = (project / "main.o").read_bytes()

    fleet.image = "sha256:two"
    async with daemon(tmp_path, fleet) as (running, service):
        await running.wrapper(project)
        await service.flush()
    record = Records(tmp_path / "store", records_max=10).read(str(project / "main.c"))

    assert outcomes(tmp_path) == ["local-run", "local-hit", "remote-run", "local-hit", "remote-run"]
    assert (here[:4], in_image) == (b"\x7fELF", b"an object")
    assert record is not None
    assert record.image == "sha256:two"
    assert [str(each) for each in record.diffs] == ["image changed: sha256:one -> sha256:two"]


async def test_without_a_project_nothing_leaves_the_machine(tmp_path: Path, project: Path) -> None:
    """The root of the file system would be the project."""
    (project / ".corral").unlink()
    fleet = Fleet()
    async with daemon(tmp_path, fleet) as (running, service):
        status, _ = await running.wrapper(project)
        await service.flush()

        assert status == 0
        assert not fleet.requests
        assert outcomes(tmp_path) == ["local-run"]
        assert refused(tmp_path, project) == "the project has no mark; put a file .corral into its root"


async def test_equal_compiles_ask_the_fleet_once_and_other_headers_ask_again(tmp_path: Path, project: Path) -> None:
    fleet = Fleet()
    fleet.open.clear()
    async with daemon(tmp_path, fleet) as (running, service):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(running.wrapper(project))
            await fleet.asked.wait()
            second = group.create_task(running.wrapper(project))
            (project / "main.c").write_text("int main(void) { return 2; }\n")
            third = group.create_task(running.wrapper(project))
            fleet.open.set()
        await service.flush()

        assert [each.result()[0] for each in (first, second, third)] == [0, 0, 0]
        assert len(fleet.requests) == 2
        assert sorted(outcomes(tmp_path)) == ["local-hit", "remote-run", "remote-run"]


async def test_more_wrappers_than_are_served_at_once_are_not_turned_away_at_the_door(tmp_path: Path) -> None:
    """uvloop and asyncio listen for a hundred unless told otherwise; make -j200 is no mistake."""
    async with daemon(tmp_path, Fleet()):
        callers = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(300)]
        for caller in callers:
            caller.setblocking(False)
        knocks = [caller.connect_ex(str(tmp_path / "run" / "socket")) for caller in callers]
        for caller in callers:
            caller.close()

    assert set(knocks) == {0}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"])
def test_a_daemon_that_is_told_to_stop_while_a_scheduler_is_silent_ends_and_the_compiler_compiles(
    project: Path, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with compiles({"CORRAL_COMPILE__REMOTE__SCHEDULER": f"http://127.0.0.1:{port}"}) as own:
            wrappers = [own.start(*COMPILE, cwd=project, stderr=subprocess.PIPE)]
            connection, _ = silent.accept()
            connection.sendall(answer)
            (project / "second.c").write_text("int x;\n")
            wrappers.append(own.start("gcc", "-c", "second.c", cwd=project, stderr=subprocess.PIPE))

            own.stop()

            assert [wrapper.wait(timeout=60) for wrapper in wrappers] == [0, 0]
            for wrapper in wrappers:
                wrapper.communicate()
            connection.close()
        assert (project / "main.o").is_file()
        assert (project / "second.o").is_file()
