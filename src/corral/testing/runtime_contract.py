"""What every runtime must keep, as a pytest class: subclass it beside one fixture, ``runtime``.

::

    @pytest.fixture(scope="module")
    def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
        with open_mine(tmp_path_factory.mktemp("mine")) as runtime:
            yield runtime


    class TestMine(RuntimeContract):
        pass

Tests of a power that ``runtime.capabilities`` does not claim are skipped, with the reason.
"""

import asyncio
import gc
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from corral.kernel.errors import InvalidSpec, NotFound, SandboxFailed, SandboxLost
from corral.sandboxes.model import KIB, MIB, End, ExecRequest, SandboxSpec, Size
from corral.sandboxes.ports import Runtime
from corral.sandboxes.sandbox import Completed, Sandbox

SMALL: Final = Size(memory_bytes=256 * MIB, cpus=2.0, processes=48, files=500, disk_bytes=32 * MIB, open_files=256)
PATH: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_numbers = count(1)


def new_spec(size: Size = SMALL, *, tenant: str = "ann") -> SandboxSpec:
    """A spec with an id that no other box of this process has."""
    return SandboxSpec(id=f"sbx_contract{os.getpid()}x{next(_numbers)}", tenant=tenant, size=size)


async def shell(sandbox: Sandbox, script: str, *, timeout_s: float = 30.0) -> Completed:
    """Run a script in the work folder."""
    return await sandbox.run("/bin/sh", "-c", script, env=PATH, cwd="/work", timeout_s=timeout_s)


async def wait_until(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Look again and again until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - processes of another namespace send no event
            await asyncio.sleep(0.01)


def processes_with(text: str) -> list[int]:
    """Host processes whose command line holds ``text``."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                command = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if text.encode() in command:
                found.append(int(entry.name))
    return found


async def sleepers(runtime: Runtime, sandbox: Sandbox, name: str) -> int:
    """How many ``sleep NAME`` run in the sandbox: as the host sees them, or where it sees none, as the box does."""
    if not runtime.capabilities.kernel_boundary:
        return len(processes_with(f"sleep\0{name}"))
    count = (
        "n=0; for f in /proc/[0-9]*/cmdline; do case $(tr -d '\\0' <$f) in sleep$NAME) n=$((n+1));; esac; done; echo $n"
    )
    done = await sandbox.run("/bin/sh", "-c", count, env={**PATH, "NAME": name})
    return int(done.stdout)


async def wait_for_sleepers(
    runtime: Runtime, sandbox: Sandbox, name: str, enough: Callable[[int], bool], *, within_s: float = 10.0
) -> None:
    """Look again and again until ``enough(sleepers)``. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not enough(await sleepers(runtime, sandbox, name)):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


def belongings() -> dict[str, Counter[str]]:
    """What this process owns that a box could leave behind, by kind; see :func:`left_behind`."""
    gc.collect()  # what earlier tests dropped is closed now, not between two comparisons
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    children = {
        child for task in os.scandir("/proc/self/task") for child in Path(task.path, "children").read_text().split()
    }
    temporary = {name for name in os.listdir("/tmp") if name.startswith("corral-") and f"-{os.getpid()}-" in name}
    groups = {path for root in ("memory", "pids", "cpu", ".") for path in _groups(Path("/sys/fs/cgroup", root))}
    return {
        "descriptors": open_descriptors(),
        "mounts": Counter(mounts),
        "children": Counter(children),
        "temporary files": Counter(temporary),
        "control groups": Counter(groups),
    }


def left_behind(before: Mapping[str, Counter[str]]) -> dict[str, list[str]]:
    """What there is now and was not before; {} when nothing is left."""
    more = {kind: now - before[kind] for kind, now in belongings().items()}
    return {kind: sorted(what.elements()) for kind, what in more.items() if what}


def open_descriptors(pid: int | str = "self") -> Counter[str]:
    """What a process has open. Which socket or pipe it is, is left out: numbers differ, how many there are does not."""
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it was closed while we looked
            found[os.readlink(entry.path).partition(":[")[0]] += 1
    return found


def _groups(tree: Path) -> set[str]:
    name = f"sbx_contract{os.getpid()}x"
    found = set()
    for folder, folders, _ in os.walk(tree):
        found |= {os.path.join(folder, child) for child in folders if child.startswith(name)}
        if not folder.rpartition("/")[2].startswith("corral-"):
            folders[:] = [child for child in folders if child.startswith("corral-") or len(Path(folder).parts) < 6]
    return found


class RuntimeContract:
    """See the module's docstring."""

    @pytest_asyncio.fixture
    async def sandbox(self, runtime: Runtime) -> AsyncIterator[Sandbox]:
        """One started sandbox of size SMALL."""
        started = Sandbox(await runtime.start(new_spec()))
        yield started
        await started.stop()

    # ---- execs ----

    async def test_output_and_exit_status_come_back(self, sandbox: Sandbox) -> None:
        done = await shell(sandbox, "echo out; echo err >&2; exit 7")

        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
        assert (done.result.end, done.result.exit_status, done.result.signal) == (End.EXITED, 7, None)

    async def test_a_signal_is_a_status_of_its_own(self, sandbox: Sandbox) -> None:
        done = await shell(sandbox, "kill -SEGV $$")

        assert (done.result.end, done.result.exit_status, done.result.signal) == (End.SIGNALED, None, signal.SIGSEGV)

    async def test_a_missing_command_does_not_start(self, sandbox: Sandbox) -> None:
        done = await sandbox.run("no-such-command", env=PATH)

        assert done.result.end is End.NOT_STARTED
        assert "no-such-command" in done.result.message

    async def test_stdin_reaches_the_command(self, sandbox: Sandbox) -> None:
        sent = os.urandom(300 * KIB)

        done = await sandbox.run("cat", env=PATH, stdin=sent)

        assert done.stdout == sent

    async def test_the_environment_is_exactly_what_was_asked(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORKER_SECRET", "never seen")

        done = await sandbox.run("/usr/bin/env", env={"ONLY": "this", "EMPTY": ""})

        assert sorted(done.stdout.decode().splitlines()) == ["EMPTY=", "ONLY=this"]

    async def test_the_worker_s_descriptors_are_not_inherited(self, sandbox: Sandbox) -> None:
        done = await shell(sandbox, "for fd in /proc/self/fd/*; do echo ${fd##*/}; done")

        assert {*done.stdout.split()} - {b"3"} == {b"0", b"1", b"2"}  # 3 is the directory that the shell reads

    async def test_a_command_runs_in_the_folder_that_was_asked(self, sandbox: Sandbox) -> None:
        await shell(sandbox, "mkdir deep && echo there > deep/file")

        done = await sandbox.run("cat", "file", env=PATH, cwd="/work/deep")

        assert done.stdout == b"there\n"

    async def test_large_output_arrives_whole(self, sandbox: Sandbox) -> None:
        done = await shell(sandbox, "head -c 8000000 /dev/zero")

        assert len(done.stdout) == 8_000_000

    async def test_two_execs_run_at_once(self, sandbox: Sandbox) -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as both:
            reader = both.create_task(shell(sandbox, "mkfifo meet; cat meet || (sleep 0.1; cat meet)"))
            both.create_task(shell(sandbox, "while ! test -p meet; do sleep 0.01; done; echo hello > meet"))

        assert reader.result().stdout == b"hello\n"

    # ---- killing ----

    async def test_cancelling_kills_daemons_that_ignore_sigterm(self, runtime: Runtime, sandbox: Sandbox) -> None:
        name = f"600.{os.getpid()}{next(_numbers)}"
        script = f"trap '' TERM; (setsid sh -c \"trap '' TERM; sleep {name} & sleep {name}\" &) ; echo up; sleep {name}"
        running = asyncio.Event()
        request = ExecRequest(argv=("/bin/sh", "-c", script), env=tuple(PATH.items()), cwd="/work")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(sandbox.exec(request, on_output=lambda _channel, _data: running.set()))
            await running.wait()
            await wait_for_sleepers(runtime, sandbox, name, lambda count: count == 3)
            task.cancel()

        assert task.cancelled()
        await wait_for_sleepers(runtime, sandbox, name, lambda count: count == 0)
        assert sandbox.soiled

    async def test_a_process_left_behind_is_killed_and_told(self, runtime: Runtime, sandbox: Sandbox) -> None:
        name = f"700.{os.getpid()}{next(_numbers)}"

        done = await shell(sandbox, f"setsid sleep {name} >/dev/null 2>&1 &")

        assert done.result.left_processes
        assert sandbox.soiled
        await wait_for_sleepers(runtime, sandbox, name, lambda count: count == 0)

    # ---- files ----

    async def test_files_go_in_and_come_out(self, sandbox: Sandbox) -> None:
        content = os.urandom(200 * KIB)

        await sandbox.write_file("/work/in/data", content, executable=True)
        copied = await shell(sandbox, "cp in/data out && test -x in/data && echo yes")

        assert copied.stdout == b"yes\n"
        assert b"".join([piece async for piece in sandbox.read_file("/work/out")]) == content
        with pytest.raises(NotFound):
            await sandbox.stat("/work/absent")

    async def test_a_reset_empties_the_work_folder(self, sandbox: Sandbox) -> None:
        await shell(sandbox, "mkdir -p a/b && touch a/b/c .hidden && chmod 0 a")

        assert await sandbox.reset()

        assert (await shell(sandbox, "for f in * .[!.]*; do test -e $f && echo $f; done")).stdout == b""

    # ---- walls ----

    async def test_there_is_no_network(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs_walls(runtime)

        done = await shell(sandbox, "ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1")

        assert set(done.stdout.split()) <= {b"lo"}

    async def test_the_root_is_read_only(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs_walls(runtime)

        done = await shell(
            sandbox, "for d in / /usr /etc /dev /proc /usr/bin; do touch $d/x 2>/dev/null && echo $d; done; true"
        )

        assert done.stdout == b""

    async def test_only_own_processes_are_seen(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs_walls(runtime)

        done = await shell(sandbox, "for p in /proc/[0-9]*; do echo ${p#/proc/}; done")

        assert len(done.stdout.split()) <= 4  # the agent, its keeper, the shell

    async def test_nothing_of_the_host_s_people_is_seen(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs_walls(runtime)

        private = "/home /root /var /run /mnt /srv /etc/shadow"

        done = await shell(sandbox, f"for path in {private}; do test -e $path && echo $path; done; cat /etc/passwd")

        assert len(done.stdout.splitlines()) == 3, done.stdout

    async def test_nobody_gains_rights(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs_walls(runtime)

        done = await shell(sandbox, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; unshare -Ur true && echo!")

        facts = dict(line.split(":\t") for line in done.stdout.decode().splitlines())
        assert {value for name, value in facts.items() if name.startswith("Cap")} == {"0" * 16}
        assert {"CapPrm", "CapEff", "CapBnd"} <= facts.keys()
        assert facts.get("NoNewPrivs", "1") == "1"  # an old gVisor does not tell it
        assert facts["Seccomp"] == "2"
        assert done.result.exit_status != 0

    # ---- limits ----

    async def test_too_much_memory_ends_in_its_own_result(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs(runtime.capabilities.memory_limit, "memory limit")
        async with _neighbour(runtime) as neighbour:
            script = "head -c 400M /dev/zero | tail -c 300M >/dev/null; exit 1"
            done = await shell(sandbox, script, timeout_s=300.0)  # an emulated machine takes its time

            assert done.result.end is End.OUT_OF_MEMORY, done
            assert sandbox.soiled
            await _unharmed(neighbour)

    async def test_too_many_processes_end_in_their_own_result(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs(runtime.capabilities.process_limit, "process limit")
        async with _neighbour(runtime) as neighbour:
            done = await shell(sandbox, "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; exit 1")

            assert done.result.end is End.PROCESS_LIMIT, done.result
            assert sandbox.soiled
            await _unharmed(neighbour)

    async def test_too_many_files_end_in_their_own_result(self, runtime: Runtime, sandbox: Sandbox) -> None:
        self._needs(runtime.capabilities.file_limit, "limit on files")
        async with _neighbour(runtime) as neighbour:
            done = await shell(sandbox, "i=0; while : > f$i; do i=$((i+1)); done; exit 1")

            assert done.result.end is End.FILE_LIMIT, done.result
            assert sandbox.soiled
            await _unharmed(neighbour)

    @pytest.mark.parametrize("folder", ["/tmp", "/work", "/dev/shm"])
    async def test_a_full_folder_ends_in_its_own_result(self, runtime: Runtime, sandbox: Sandbox, folder: str) -> None:
        self._needs(runtime.capabilities.disk_limit, "disk limit")
        async with _neighbour(runtime) as neighbour:
            done = await shell(sandbox, f"head -c 64M /dev/zero > {folder}/big")

            assert done.result.end is End.DISK_FULL, done.result
            assert sandbox.soiled
            await _unharmed(neighbour)

    async def test_time_that_is_over_ends_in_its_own_result(self, sandbox: Sandbox) -> None:
        done = await shell(sandbox, "trap '' TERM; sleep 600", timeout_s=0.2)

        assert done.result.end is End.TIMED_OUT
        assert sandbox.soiled

    async def test_too_much_output_ends_in_its_own_result(self, sandbox: Sandbox) -> None:
        done = await sandbox.run("yes", env=PATH, output_bytes_max=100_000)

        assert done.result.end is End.OUTPUT_LIMIT
        assert len(done.stdout) <= 100_000
        assert sandbox.soiled

    # ---- start and stop ----

    async def test_stopping_twice_is_stopping_once(self, runtime: Runtime) -> None:
        sandbox = Sandbox(await runtime.start(new_spec()))

        await sandbox.stop()
        await sandbox.stop()

        with pytest.raises(SandboxLost):
            await sandbox.ping()

    async def test_stopping_ends_whatever_runs(self, runtime: Runtime) -> None:
        sandbox = Sandbox(await runtime.start(new_spec()))
        name = f"800.{os.getpid()}{next(_numbers)}"
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(_outcome(shell(sandbox, f"setsid sleep {name} & sleep {name}")))
            await wait_for_sleepers(runtime, sandbox, name, lambda count: count == 2)

            await sandbox.stop()

        assert isinstance(ended.result(), SandboxLost)
        await wait_until(lambda: not processes_with(name))

    async def test_nothing_is_left_behind(self, runtime: Runtime) -> None:
        await Sandbox(await runtime.start(new_spec())).stop()  # whatever is made once is made now
        before = belongings()

        for _ in range(5):
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(_short_life(runtime))

        assert left_behind(before) == {}

    async def test_a_cancelled_start_leaves_nothing_behind(self, runtime: Runtime) -> None:
        await Sandbox(await runtime.start(new_spec())).stop()
        before = belongings()

        for delay_s in (0.0, 0.001, 0.003, 0.006):
            try:
                async with asyncio.timeout(delay_s):
                    box = await runtime.start(new_spec())
            except TimeoutError:
                continue
            await box.stop()

        assert left_behind(before) == {}

    async def test_a_root_that_is_not_there_is_refused_by_name(self, runtime: Runtime) -> None:
        with pytest.raises((InvalidSpec, SandboxFailed), match=r"/no/such/root|image"):
            await runtime.start(replace(new_spec(), root="/no/such/root"))

    # ---- for the tests above ----

    @staticmethod
    def _needs(power: bool, what: str) -> None:
        if not power:
            pytest.skip(f"this runtime has no {what} on this machine")

    @staticmethod
    def _needs_walls(runtime: Runtime) -> None:
        if runtime.capabilities.shared_files:
            pytest.skip("this runtime shares the host's files and does not claim to isolate")


class _neighbour:  # reads as a phrase: async with _neighbour(runtime) as neighbour
    """Another tenant's sandbox with a command that runs all the time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __aenter__(self) -> Sandbox:
        self._sandbox = Sandbox(await self._runtime.start(new_spec(tenant="bob")))
        self._execution = await self._sandbox.start(ExecRequest(argv=("cat",), env=tuple(PATH.items())))
        return self._sandbox

    async def __aexit__(self, *_: object) -> None:
        await self._execution.write_stdin(b"still here")
        self._execution.close_stdin()
        chunk = await self._execution.wait_output()
        result = await self._execution.wait()
        await self._sandbox.stop()
        assert chunk is not None
        assert chunk[1] == b"still here"
        assert result.ok, result


async def _unharmed(neighbour: Sandbox) -> None:
    done = await shell(neighbour, "echo fine > file && cat file && rm file")
    assert (done.result.ok, done.stdout) == (True, b"fine\n")
    assert not neighbour.soiled


async def _short_life(runtime: Runtime) -> None:
    sandbox = Sandbox(await runtime.start(new_spec()))
    try:
        assert (await shell(sandbox, "echo x > x")).result.ok
    finally:
        await sandbox.stop()


async def _outcome(running: Coroutine[Any, Any, Completed]) -> Completed | SandboxLost:
    """The result, or the SandboxLost instead of it."""
    try:
        return await running
    except SandboxLost as error:
        return error
