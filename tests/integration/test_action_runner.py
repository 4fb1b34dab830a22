"""Actions on a worker, in real sandboxes: what they leave, how they end, and what bad input gets."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from corral.actions.adapters.messages import blobs_of_result, read_tree
from corral.actions.adapters.overlay import OverlaidInputs
from corral.actions.adapters.stage_helper import StageHelper
from corral.actions.errors import MissingBlobs
from corral.actions.fetching import Directories
from corral.actions.input_files import InputFiles
from corral.actions.inputs import CopiedInputs
from corral.actions.limits import ActionWorkerConfig
from corral.actions.model import Command, Ended, OutputStyle, OutputSymlink, Performed
from corral.actions.ports import InputRoots
from corral.actions.runner import ActionRunner, RunnerServices, SandboxPolicy
from corral.actions.trees import SHARED_ENTRIES, SharedTrees
from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.content import read_bytes
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec, SandboxFailed, TooLarge
from corral.sandboxes.model import MIB, Size
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import PoolConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.actions import BuiltAction, Inputs, Link, Program, build_action, replace_struct, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = Size(memory_bytes=256 * MIB, disk_bytes=64 * MIB, processes=64)
_numbers = count(1)


class Worker:
    """A worker's parts for actions, without a queue."""

    def __init__(
        self, runner: ActionRunner, blobs: DiskBlobs, files: InputFiles, spool: Path, overlaid: OverlaidInputs | None
    ) -> None:
        self.overlaid = overlaid
        self.runner = runner
        self.blobs = blobs
        self.files = files
        self.spool = spool

        self._laid = 0

    def laid_since(self) -> int:
        """How many input roots were laid below a layer since the last question."""
        assert self.overlaid is not None
        before, self._laid = self._laid, self.overlaid.overlaid
        return self._laid - before

    async def run(self, built: BuiltAction, tenant: str = "ann") -> Performed:
        return await self.runner.run(tenant, await built.store(self.blobs, tenant))

    async def do(self, command: Command, inputs: Inputs | None = None, **more: object) -> Performed:
        return await self.run(build_action(command, inputs, **more))  # type: ignore[arg-type]

    async def content(self, digest: Digest | None, tenant: str = "ann") -> bytes:
        assert digest is not None
        return await read_bytes(self.blobs, tenant, digest, bytes_max=64 * MIB)


@asynccontextmanager
async def working(
    folder: Path, *, runtime: str = "bubblewrap", overlay: bool = False, sandboxes: int = 16
) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        runtimes = stack.enter_context(open_runtimes(RuntimesConfig(names=(runtime,)), folder / "sandboxes"))
        new_id = lambda: f"sbx_contract{os.getpid()}xact{next(_numbers)}"  # noqa: E731
        pools = await stack.enter_async_context(
            Pools(runtimes, PoolConfig(warm=1, max=sandboxes), clock=clock, new_id=new_id)
        )
        blobs = await stack.enter_async_context(DiskBlobs(folder / "blobs"))
        spool = folder / "spool"
        spool.mkdir()
        config = ActionWorkerConfig(entries=2000, inline_bytes=100)
        files = InputFiles(folder / "files", blobs, total_bytes=config.cache_bytes, at_once=8)
        files.open_empty()
        inputs: InputRoots = (copied := CopiedInputs(Directories(blobs, config), files))
        overlaid: OverlaidInputs | None = None
        if overlay:
            trees = SharedTrees(folder / "trees", files, total_bytes=config.cache_bytes)
            inputs = overlaid = OverlaidInputs(copied, trees, StageHelper())
            stack.callback(overlaid.close)
        services = RunnerServices(
            blobs=blobs,
            inputs=inputs,
            sandboxes=pools,
            policy=SandboxPolicy(runtime=runtime, size=SMALL, size_max=SMALL),
            clock=clock,
            spool=spool,
            worker="wrk_test",
            config=config,
        )
        yield Worker(ActionRunner(services), blobs, files, spool, overlaid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    async with working(tmp_path_factory.mktemp("worker")) as opened:
        yield opened


async def test_an_action_reads_its_inputs_and_leaves_its_outputs(worker: Worker) -> None:
    command = shell("./tool < src/in.txt > out/result.txt; echo told; echo warned >&2", "out/result.txt")
    inputs: Inputs = {"tool": Program(b"#!/bin/sh\ntr a-z A-Z\n"), "src/in.txt": b"quiet"}

    performed = await worker.do(command, inputs)

    (output,) = performed.result.files
    assert (output.path, await worker.content(output.digest)) == ("out/result.txt", b"QUIET")
    assert (performed.result.stdout, performed.result.stderr) == (b"told\n", b"warned\n")
    assert await worker.content(performed.result.stdout_digest) == b"told\n"
    assert (performed.ended, performed.result.exit_code, performed.succeeded) == (Ended.EXITED, 0, True)
    assert performed.result.worker == "wrk_test"
    assert not await worker.blobs.find_missing("ann", performed.named)
    assert set(blobs_of_result(performed.result)) <= set(performed.named)


async def test_everything_of_an_action_is_named_by_its_own_hash_function(worker: Worker) -> None:
    command = shell("cat in > out; mkdir d; cp in d", "out", "d")

    performed = await worker.do(command, {"in": b"hashed"}, function=HashFunction.BLAKE3)

    assert performed.result.files[0].digest == Digest.of(b"hashed", HashFunction.BLAKE3)
    assert {digest.function for digest in performed.named} == {HashFunction.BLAKE3}


async def test_every_instant_is_told_in_its_order(worker: Worker) -> None:
    performed = await worker.do(shell("echo x > a", "a"))

    times = performed.result.times
    instants = [
        *(times.queued_s, times.worker_start_s, times.input_fetch_start_s, times.input_fetch_completed_s),
        *(times.execution_start_s, times.execution_completed_s, times.output_upload_start_s),
        *(times.output_upload_completed_s, times.worker_completed_s),
    ]
    assert all(instants)
    assert instants == sorted(instants)


async def test_the_environment_is_exactly_the_command_s_and_the_directory_too(worker: Worker) -> None:
    command = replace_struct(
        shell("env > env.txt; pwd > ../where.txt", "env.txt", "../where.txt"),
        environment=(("A", "1"), ("B", "zwei")),
        working_directory="sub/dir",
    )

    performed = await worker.do(command, {"sub/dir/here": b""})

    found = {each.path: (await worker.content(each.digest)).decode() for each in performed.result.files}
    names = {line.partition("=")[0] for line in found["env.txt"].splitlines()}
    assert {"A", "B"} <= names <= {"A", "B", "PWD", "SHLVL", "_", "OLDPWD"}  # those are the shell's own
    assert found["../where.txt"].strip() == "/work/build/sub/dir"


async def test_directories_and_symlinks_are_outputs_of_either_style(worker: Worker) -> None:
    script = "mkdir -p d/deep/er; echo 1 > d/one; echo 2 > d/deep/er/two; chmod +x d/one; ln -s one d/l; ln -s d link"
    new = shell(script, "d", "link", "absent")
    old = replace_struct(
        new, output_paths=(), style=OutputStyle.FILES, output_files=("link", "absent"), output_directories=("d",)
    )

    for command in (new, old):
        performed = await worker.do(command)
        (directory,) = performed.result.directories
        top, *below = read_tree(await worker.content(directory.tree), HashFunction.SHA256)
        assert [(file.name, file.executable) for file in top.files] == [("one", True)]
        assert [(link.name, link.target) for link in top.symlinks] == [("l", "one")]
        assert [each.directories[0].name for each in (top, below[0])] == ["deep", "er"]
        assert performed.result.files == ()
        links = performed.result.file_symlinks if command is old else performed.result.symlinks
        assert links == (OutputSymlink("link", "d"),)
        assert not await worker.blobs.find_missing("ann", performed.named)


async def test_a_directory_can_also_be_told_as_blobs_of_its_own(worker: Worker) -> None:
    command = replace_struct(shell("mkdir -p d/e; echo > d/e/f", "d"), root_directories=True)

    performed = await worker.do(command)

    (directory,) = performed.result.directories
    assert directory.root in performed.named
    assert await worker.content(directory.root)


@pytest.mark.parametrize(
    ("script", "ended", "exit_code", "signal"),
    [
        ("exit 9", Ended.EXITED, 9, None),
        ("kill -9 $$", Ended.SIGNALED, 137, 9),
        ("exit 137", Ended.EXITED, 137, None),
    ],
)
async def test_death_by_a_signal_is_not_an_exit_status(
    worker: Worker, script: str, ended: Ended, exit_code: int, signal: int | None
) -> None:
    performed = await worker.do(shell(script))

    assert (performed.ended, performed.result.exit_code, performed.signal) == (ended, exit_code, signal)
    assert not performed.succeeded
    assert ("SIGKILL" in performed.message) is (signal == 9)


async def test_a_timeout_keeps_the_output_so_far(worker: Worker) -> None:
    performed = await worker.do(shell("echo early; echo half > out; sleep 60", "out"), timeout_s=0.5)

    assert performed.ended is Ended.TIMED_OUT
    assert performed.result.stdout == b"early\n"
    assert [each.path for each in performed.result.files] == ["out"]
    assert not performed.succeeded


async def test_a_program_that_does_not_exist_is_a_result(worker: Worker) -> None:
    performed = await worker.do(Command(arguments=("./absent",)))

    assert (performed.ended, performed.result.exit_code) == (Ended.NOT_STARTED, 127)
    assert "absent" in performed.message


async def test_output_of_any_length_takes_no_memory(worker: Worker) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    performed = await worker.do(shell("head -c 256M /dev/zero"))

    assert performed.result.stdout_digest is not None
    assert performed.result.stdout_digest.size_bytes == 256 * MIB
    assert performed.result.stdout == b""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024
    assert os.listdir(worker.spool) == []


async def test_all_missing_inputs_are_named(worker: Worker) -> None:
    built = build_action(shell("true"), {"a": b"first", "b/c": b"second", "d": b"third"})
    gone = {built.inputs["a"], built.inputs["b/c"]}

    with pytest.raises(MissingBlobs) as raised:
        await worker.run(built.without(*gone))

    assert set(raised.value.digests) == gone


@pytest.mark.parametrize("what", ["command", "input_root"])
async def test_a_missing_part_of_the_action_is_named(worker: Worker, what: str) -> None:
    built = build_action(shell(f"true {what}"), {"a": what.encode()})
    gone: Digest = getattr(built.action, what)

    with pytest.raises(MissingBlobs) as raised:
        await worker.run(built.without(gone))

    assert raised.value.digests == (gone,)


async def test_the_empty_file_and_the_empty_directory_need_not_be_stored(worker: Worker) -> None:
    built = build_action(shell("test -f e && test -d d && ! test -s e"), {"e": b"", "d": None})
    empty = [digest for digest in built.blobs if digest.size_bytes == 0]

    performed = await worker.run(built.without(*empty))

    assert (len(empty), performed.succeeded) == (1, True)


async def test_what_a_command_does_to_its_inputs_stays_in_its_sandbox(worker: Worker) -> None:
    inputs: Inputs = {"a": b"kept", "dir/b": b"kept too"}
    spoil = "echo spoiled > a; chmod 777 dir/b; mv dir/b dir/c; rm -r dir; ln -f a hard; echo more >> hard"

    first = await worker.do(shell(spoil + " 2>&1; true"), inputs)
    second = await worker.do(shell("cat a dir/b; ls"), inputs)

    assert first.succeeded
    assert second.result.stdout == b"keptkept tooa\ndir\n"


async def test_inputs_are_fetched_once(worker: Worker) -> None:
    inputs: Inputs = {"a": b"once 1", "b": b"once 2", "same": b"once 1", "x": Program(b"once 1")}
    before = worker.files.fetched

    await worker.do(shell("true"), inputs)
    await worker.do(shell("true # other"), {**inputs, "c": b"once 3"})

    assert worker.files.fetched - before == 4  # the executable one is a file of its own


async def test_one_tenant_s_inputs_are_not_another_s(worker: Worker) -> None:
    built = build_action(shell("cat a"), {"a": b"secret"})
    await worker.run(built, "ann")

    with pytest.raises(MissingBlobs):
        await worker.run(built.without(built.inputs["a"]), "bob")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (Command(arguments=()), "the command is empty"),
        (Command(arguments=("true",), working_directory="../up"), "leads out of the input root"),
        (Command(arguments=("true",), output_paths=("/etc/passwd",)), "is not a relative path"),
        (Command(arguments=("true",), output_paths=("a/../../b",)), "leads out of the input root"),
        (Command(arguments=("true",), environment=(("A=B", "1"),)), "impossible name or value"),
        (Command(arguments=("true",), platform=(("imgae", "x"),)), 'did you mean "image"'),
        (Command(arguments=("true",), platform=(("memory", "much"),)), "write a size"),
        (Command(arguments=("true",), platform=(("network", "true"),)), "gives no network"),
        (Command(arguments=("true",), platform=(("memory", "64GB"),)), "more than this worker gives"),
    ],
)
async def test_what_no_sandbox_could_run_is_refused_by_name(worker: Worker, command: Command, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        await worker.do(command)


@pytest.mark.parametrize(
    ("script", "command", "words"),
    [
        ("mkfifo out", shell("mkfifo out", "out"), "out"),
        ("mkdir f", Command(arguments=(), style=OutputStyle.FILES, output_files=("f",)), "is a directory"),
        ("rmdir d; echo > d", Command(arguments=(), style=OutputStyle.FILES, output_directories=("d",)), "is a file"),
    ],
)
async def test_outputs_of_the_wrong_kind_are_refused(worker: Worker, script: str, command: Command, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        await worker.do(replace_struct(command, arguments=("/bin/sh", "-c", script)))


async def test_too_many_entries_are_refused_before_anything_is_fetched(worker: Worker) -> None:
    with pytest.raises(TooLarge, match="2000 entries"):
        await worker.do(shell("true"), {f"d{n % 7}/f{n}": b"" for n in range(2001)})


async def test_many_actions_at_once_each_have_a_sandbox_of_their_own(worker: Worker) -> None:
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(worker.do(shell(f"cat a; echo {n} > out; ls", "out"), {"a": str(n).encode()}))
            for n in range(12)
        ]

    for n, task in enumerate(running):
        assert task.result().result.stdout == f"{n}a\nout\n".encode()


async def test_a_canceled_action_leaves_nothing_behind(worker: Worker) -> None:
    built = build_action(shell("sleep 60"))
    digest = await built.store(worker.blobs, "ann")
    started = asyncio.Event()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.runner.run("ann", digest, on_started=lambda _at_s: started.set()))
        await started.wait()
        task.cancel()

    assert task.cancelled()
    assert (await worker.do(shell("echo again"))).result.stdout == b"again\n"


async def test_links_in_inputs_are_as_they_were_given(worker: Worker) -> None:
    performed = await worker.do(
        shell("readlink in out; cat in"), {"in": Link("dir/file"), "out": Link("/etc/absent"), "dir/file": b"through"}
    )

    assert performed.result.stdout == b"dir/file\n/etc/absent\nthrough"


def many(prefix: str, count: int) -> Inputs:
    return {f"{prefix}/f{n:03}": f"{prefix} {n}".encode() for n in range(count)}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["bubblewrap", "oci"])
async def overlay_worker(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Worker]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount into sandboxes of this machine")
    folder = tmp_path_factory.mktemp(request.param)
    try:
        async with working(folder, runtime=request.param, overlay=True) as opened:
            yield opened
    except SandboxFailed as error:
        pytest.skip(f"no {request.param} here: {error}")


async def test_large_inputs_lie_below_a_writable_layer(overlay_worker: Worker) -> None:
    inputs: Inputs = {
        **many("small", 40),
        **many("large/deep", SHARED_ENTRIES),
        "tool": Program(b"#!/bin/sh\necho ran"),
    }
    script = "./tool; ls small large/deep | wc -l; cat small/f007 large/deep/f255; mkdir large/deep/new"

    overlay_worker.laid_since()
    first = await overlay_worker.do(shell(script), inputs)
    again = await overlay_worker.do(shell(script + " # again"), inputs)

    for performed in (first, again):
        assert performed.result.stdout == b"ran\n299\nsmall 7large/deep 255"
        assert (performed.result.exit_code, performed.result.stderr) == (0, b"")
    assert overlay_worker.laid_since() == 2


async def test_what_a_command_does_to_laid_inputs_stays_in_its_sandbox(overlay_worker: Worker) -> None:
    inputs = {**many("dir", 20), **many("large", SHARED_ENTRIES)}
    spoil = (
        "set -e; echo spoiled > dir/f001; chmod 777 dir/f002; mv dir/f003 dir/moved; ln dir/f004 hard; echo x >> hard;"
        "rm dir/f005; rm large/f000; echo spoiled >> large/f001; rm -r dir; touch -d 2001-01-01 large/f002"
    )

    overlay_worker.laid_since()
    first = await overlay_worker.do(shell(spoil), inputs)
    second = await overlay_worker.do(
        shell("cat dir/f00[1-5] large/f00[0-2]; stat -c %a dir/f002; ls dir | wc -l"), inputs
    )

    assert (first.result.exit_code, first.result.stderr) == (0, b"")
    expected = "".join(f"dir {n}" for n in range(1, 6)) + "".join(f"large {n}" for n in range(3)) + "644\n20\n"
    assert second.result.stdout == expected.encode()
    assert overlay_worker.laid_since() == 2


async def test_a_sandbox_is_clean_after_laid_inputs_and_its_next_user_sees_none(tmp_path: Path) -> None:
    async with working(tmp_path, overlay=True, sandboxes=1) as worker:
        first = await worker.do(shell("echo left > left; ls | wc -l"), many("dir", 20))
        second = await worker.do(shell("ls -A /work /work/build; grep -c overlay /proc/self/mounts"))

    assert first.sandbox == second.sandbox
    assert second.result.stdout == b"/work:\nbuild\n\n/work/build:\n0\n"


async def test_inputs_that_differ_elsewhere_share_a_large_directory(overlay_worker: Worker) -> None:
    large = many("tools", SHARED_ENTRIES)
    assert overlay_worker.overlaid is not None
    before = overlay_worker.overlaid.trees.built

    for n in range(3):
        performed = await overlay_worker.do(shell("cat source tools/f000"), {**large, "source": str(n).encode()})
        assert performed.result.stdout == f"{n}tools 0".encode()

    assert overlay_worker.overlaid.trees.built - before == 4  # one for the tools, and one for the rest of each


async def test_no_file_of_the_store_is_linked_into_a_tree(overlay_worker: Worker) -> None:
    await overlay_worker.do(shell("true"), many("dir", 20))

    linked = [
        path
        for path in (overlay_worker.spool.parent / "blobs").rglob("*")
        if path.is_file() and path.stat().st_nlink > 1
    ]

    assert linked == []


async def test_outputs_are_collected_from_below_the_writable_layer(overlay_worker: Worker) -> None:
    script = "echo made > dir/made; echo changed > dir/f001; mkdir -p out/deep; cp dir/f002 out/deep/copy"

    performed = await overlay_worker.do(shell(script, "dir", "out/deep/copy", "new/parent/file"), many("dir", 20))

    (directory,) = performed.result.directories
    (top,) = read_tree(await overlay_worker.content(directory.tree), HashFunction.SHA256)
    found = {file.name: file.digest for file in top.files}
    assert len(found) == 21
    assert await overlay_worker.content(found["f001"]) == b"changed\n"
    assert await overlay_worker.content(performed.result.files[0].digest) == b"dir 2"


async def test_when_layers_cannot_be_laid_inputs_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_STAGE", str(tmp_path / "absent"))
    async with working(tmp_path, overlay=True) as worker:
        for n in range(5):
            performed = await worker.do(shell(f"cat dir/f019 # {n}"), many("dir", 20))
            assert performed.result.stdout == b"dir 19"

        assert worker.overlaid is not None
        assert worker.overlaid.overlaid == 0
