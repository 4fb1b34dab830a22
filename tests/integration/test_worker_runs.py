"""A worker carries out real runs in real sandboxes, against a queue and a log in memory."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import read_bytes, write_bytes
from corral.blobs.trees import TreeBuilder, walk_tree
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import QuotaExceeded, StoreUnavailable
from corral.kernel.ids import new_id
from corral.sandboxes.model import MIB
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import PoolConfig
from corral.sandboxes.runtimes.bubblewrap import BubblewrapRuntime
from corral.sandboxes.runtimes.home import Home
from corral.tasks.model import Artifact, ArtifactKind, Phase, Reason, Resolved, Started
from corral.tasks.payload import PayloadSchema
from corral.tasks.plugin import Plugin
from corral.tasks.plugins.artifacts import ArtifactsPlugin
from corral.tasks.plugins.cache import CacheConfig, CachePlugin
from corral.tasks.plugins.env import EnvConfig, EnvPlugin
from corral.tasks.plugins.livelog import LiveLogConfig, LiveLogPlugin
from corral.tasks.plugins.maxruntime import MaxRunTimePlugin
from corral.tasks.plugins.success import SuccessPlugin
from corral.tasks.plugins.watchdog import WatchdogPlugin
from corral.tasks.ports import RunRef
from corral.tasks.run import RunServices
from corral.tasks.run_config import RunConfig, SizeLimits, WorkerConfig
from corral.tasks.worker import Worker, WorkerStopped
from corral.testing.memory_source import MemoryLogSink, MemoryTaskSource

TENANT = "default"
SIZE = SizeLimits(memory_bytes=256 * MIB, disk_bytes=64 * MIB, processes=64)


@dataclass
class World:
    """One worker and everything around it."""

    source: MemoryTaskSource
    sink: MemoryLogSink
    blobs: MemoryBlobs
    pools: Pools
    worker: Worker
    working: "asyncio.Task[None]"
    cache: CachePlugin

    async def run(self, *command: str, **payload: Any) -> tuple[Resolved, str]:
        """Run a command to its end: the report and the log."""
        ref = await self.source.submit({"command": list(command), **payload})
        resolved = await self.source.wait_resolved(ref)
        return resolved, self.sink.text(ref)

    async def shell(self, script: str, **payload: Any) -> tuple[Resolved, str]:
        """Run a shell script to its end: the report and the log."""
        return await self.run("sh", "-c", script, **payload)

    async def start(self, script: str, **payload: Any) -> RunRef:
        """Start a shell script; returns when its command runs."""
        ref = await self.source.submit({"command": ["sh", "-c", script], **payload})
        await self.source.wait_started(ref)
        return ref


@asynccontextmanager
async def a_world(
    directory: Path,
    *,
    run: RunConfig | None = None,
    worker: WorkerConfig | None = None,
    livelog: LiveLogConfig | None = None,
    lease_s: float = 30.0,
    blobs: MemoryBlobs | None = None,
    extra: tuple[Plugin, ...] = (),
) -> AsyncIterator[World]:
    clock = SystemClock()
    spool = directory / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        home = stack.enter_context(Home(directory / "sandboxes"))
        runtime = BubblewrapRuntime(home)
        stack.callback(runtime.close)
        pools = await stack.enter_async_context(
            Pools(
                {"bubblewrap": runtime},
                PoolConfig(warm=1),
                clock=clock,
                new_id=lambda: new_id("sbx", now_s=clock.now_s()),
            )
        )
        source, sink = MemoryTaskSource(clock, lease_s=lease_s), MemoryLogSink()
        store = blobs or MemoryBlobs()
        cache = CachePlugin(directory / "caches", clock, CacheConfig(total_bytes=1 * MIB, cache_bytes_max=4 * MIB))
        plugins: tuple[Plugin, ...] = (
            EnvPlugin(EnvConfig(extra={"FROM_WORKER": "yes"})),
            LiveLogPlugin(sink, livelog),
            ArtifactsPlugin(spool),
            cache,
            MaxRunTimePlugin(),
            SuccessPlugin(),
            WatchdogPlugin(clock),
            *extra,
        )
        services = RunServices(
            sandboxes=pools,
            blobs=store,
            clock=clock,
            plugins=plugins,
            schema=PayloadSchema.of(plugins),
            config=run or RunConfig(size=SIZE),
            runtime="bubblewrap",
            new_incident=lambda: new_id("inc", now_s=clock.now_s()),
        )
        loops = Worker(source, services, worker or WorkerConfig(slots=4, tick_s=0.05, retry_s=0.01))
        working = asyncio.create_task(loops.run())
        world = World(source, sink, store, pools, loops, working, cache)
        try:
            yield world
        finally:
            loops.stop_now("the test is over")
            async with asyncio.timeout(30):
                await asyncio.wait({working})
            if not working.cancelled() and (failure := working.exception()) is not None:
                assert isinstance(failure, WorkerStopped), failure


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def test_a_short_run_tells_its_start_with_its_end_and_a_long_one_before_it(world: World) -> None:
    short = await world.source.submit({"command": ["/bin/true"]})
    end = await world.source.wait_resolved(short)
    long = await world.start("sleep 30")

    assert world.source.held[short.task_id].reports == [end]
    assert end.started_s is not None
    assert [type(report) for report in world.source.held[long.task_id].reports] == [Started]


async def test_a_command_that_exits_with_0_completes_and_its_log_holds_both_streams(world: World) -> None:
    resolved, log = await world.shell("echo out; echo err >&2; printf last")

    assert (resolved.phase, resolved.reason, resolved.exit_status) == (Phase.COMPLETED, None, 0)
    assert log == "out\nerr\nlast"
    assert resolved.log_bytes == len("out\nerr\nlast")
    assert resolved.argv == ("sh", "-c", "echo out; echo err >&2; printf last")
    assert resolved.env_digest.startswith("b3:")
    assert resolved.usage.sandbox.startswith("sbx_")
    assert resolved.usage.runtime == "bubblewrap"


async def test_the_first_run_is_cold_with_a_reason_and_a_later_one_is_warm(world: World) -> None:
    first, _ = await world.run("true")
    seen = [first]
    while not seen[-1].usage.warm and len(seen) < 50:
        seen.append((await world.run("true"))[0])

    assert not first.usage.warm
    assert first.usage.cold_reason
    assert seen[-1].usage.warm
    assert seen[-1].usage.cold_reason == ""


async def test_a_run_that_writes_nothing_opens_no_log(world: World) -> None:
    resolved, _ = await world.run("true")

    assert resolved.log_bytes == 0
    assert world.sink.appends == 0
    assert world.sink.closed == {}


async def test_a_command_that_fails_is_a_result_with_its_status(world: World) -> None:
    resolved, _ = await world.shell("exit 7")

    assert (resolved.phase, resolved.exit_status, resolved.end) == (Phase.FAILED, 7, "exited")
    assert resolved.message == "the command ended with exit status 7"


async def test_a_command_that_does_not_exist_fails_with_a_sentence_that_names_it(world: World) -> None:
    resolved, log = await world.run("no-such-program", artifacts=[{"path": "out"}])

    assert (resolved.phase, resolved.end) == (Phase.FAILED, "not-started")
    assert "no-such-program" in resolved.message
    assert "artifact" not in log


async def test_a_run_starts_in_its_working_directory_with_exactly_the_environment_that_was_asked_for(
    world: World,
) -> None:
    os.environ["LEAKED"] = "secret of the worker"
    resolved, log = await world.shell("pwd; env | sort", env={"A": "1", "FROM_WORKER": "overridden"})

    lines = log.splitlines()
    names = {line.partition("=")[0] for line in lines[1:]}
    assert resolved.phase is Phase.COMPLETED
    assert lines[0] == "/work"
    assert {"A=1", "FROM_WORKER=overridden", "HOME=/work", "CORRAL_RUN_ID=0"} <= set(lines)
    assert names <= {"A", "FROM_WORKER", "HOME", "LANG", "PATH", "CORRAL_TASK_ID", "CORRAL_RUN_ID", "PWD", "_"}


async def test_all_mistakes_of_a_payload_are_in_the_log_and_in_the_message(world: World) -> None:
    ref = await world.source.submit({"command": [], "comand": ["true"], "artifacts": [{"path": "/etc/passwd"}]})
    resolved = await world.source.wait_resolved(ref)
    log = world.sink.text(ref)

    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, Reason.MALFORMED_PAYLOAD)
    for part in ('did you mean "command"?', "command: is empty", "is absolute"):
        assert part in log
        assert part in resolved.message
    assert all(line.startswith("[corral:error] ") for line in log.splitlines())


async def test_what_the_workers_policy_refuses_is_a_malformed_payload(world: World) -> None:
    resolved, log = await world.run(
        "true", network=True, image="root:/srv/other", resources={"memory": "5TB"}, max_run_time="40d"
    )

    assert resolved.reason is Reason.MALFORMED_PAYLOAD
    for part in ("payload.network", "payload.image", "payload.resources.memory", "max_run_time"):
        assert part in log


async def test_an_unknown_runtime_is_refused_with_those_that_exist(world: World) -> None:
    ref = await world.source.submit({"command": ["true"]}, runtime="firecracker")
    resolved = await world.source.wait_resolved(ref)

    assert resolved.reason is Reason.MALFORMED_PAYLOAD
    assert "bubblewrap" in resolved.message


async def test_inputs_of_every_kind_are_in_place_before_the_command_starts(world: World) -> None:
    file = await write_bytes(world.blobs, TENANT, b"#!/bin/sh\necho ran\n")
    builder = TreeBuilder()
    builder.add_file("deep/er/file", await write_bytes(world.blobs, TENANT, b"in a tree\n"))
    builder.add_symlink("deep/link", "er/file")
    builder.add_directory("empty")
    tree = await builder.store(world.blobs, TENANT)
    earlier = Artifact(name="out.txt", kind=ArtifactKind.FILE, digest=str(await write_bytes(world.blobs, TENANT, b"E")))
    task = f"task_{0:026d}"

    ref = await world.source.submit(
        {
            "command": ["sh", "-c", "./bin/tool && cat src/deep/link && test -d src/empty && cat old"],
            "inputs": [
                {"path": "bin/tool", "digest": str(file), "executable": True},
                {"path": "src", "tree": str(tree)},
                {"path": "old", "artifact": {"task": task, "name": "out.txt"}},
            ],
        },
        artifacts={f"{task}/last/out.txt": earlier},
    )
    resolved = await world.source.wait_resolved(ref)

    assert resolved.phase is Phase.COMPLETED, resolved.message
    assert world.sink.text(ref) == "ran\nin a tree\nE"
    assert resolved.inputs == (str(file), str(tree), earlier.digest)


async def test_a_tree_may_be_the_whole_working_directory(world: World) -> None:
    builder = TreeBuilder()
    builder.add_file("Makefile", await write_bytes(world.blobs, TENANT, b"hello"))
    tree = await builder.store(world.blobs, TENANT)

    _, log = await world.run("cat", "/work/Makefile", inputs=[{"path": ".", "tree": str(tree)}])

    assert log == "hello"


async def test_an_input_that_is_not_in_the_store_is_named(world: World) -> None:
    digest = Digest.of(b"never uploaded")

    resolved, _ = await world.run("true", inputs=[{"path": "x", "digest": str(digest)}])

    assert resolved.reason is Reason.MALFORMED_PAYLOAD
    assert 'payload.inputs[0]: "x" is not in the store' in resolved.message


async def test_artifacts_of_every_type_are_kept_with_their_content(world: World) -> None:
    resolved, _ = await world.shell(
        "mkdir -p out/sub; echo one >out/a.txt; echo two >out/sub/b.txt;"
        " ln -s /etc/passwd out/leak; ln -s a.txt out/in",
        artifacts=[
            {"path": "out/a.txt", "name": "first.txt"},
            {"path": "out", "type": "directory", "name": "all"},
            {"path": "out/**/*.txt", "type": "glob", "name": "texts"},
            {"path": "nothing", "optional": True},
        ],
    )

    assert resolved.phase is Phase.COMPLETED, resolved.message
    by_name = {artifact.name: artifact for artifact in resolved.artifacts}
    assert set(by_name) == {"first.txt", "all", "texts/out/a.txt", "texts/out/sub/b.txt"}
    assert by_name["first.txt"].content_type == "text/plain"
    first = await read_bytes(world.blobs, TENANT, Digest.parse(by_name["first.txt"].digest), bytes_max=100)
    assert first == b"one\n"
    paths = {node.path async for node in walk_tree(world.blobs, TENANT, Digest.parse(by_name["all"].digest))}
    assert paths == {"a.txt", "in", "sub", "sub/b.txt"}  # the symlink that leads out is left out


async def test_a_missing_artifact_fails_the_run_and_leaves_an_error_artifact(world: World) -> None:
    resolved, log = await world.run("true", artifacts=[{"path": "missing.bin"}, {"path": "*.o", "type": "glob"}])

    assert resolved.phase is Phase.FAILED
    assert resolved.exit_status == 0
    assert [artifact.kind for artifact in resolved.artifacts] == [ArtifactKind.ERROR, ArtifactKind.ERROR]
    assert all("file-missing-on-worker" in artifact.message for artifact in resolved.artifacts)
    assert 'artifact "missing.bin"' in log


async def test_a_missing_artifact_of_a_failed_command_is_not_in_its_log(world: World) -> None:
    resolved, log = await world.shell("echo real cause >&2; exit 3", artifacts=[{"path": "missing.bin"}])

    assert log == "real cause\n"
    assert resolved.message == "the command ended with exit status 3"
    assert resolved.artifacts[0].kind is ArtifactKind.ERROR


async def test_a_directory_or_a_fifo_where_a_file_was_promised_is_an_error_artifact(world: World) -> None:
    resolved, _ = await world.shell(
        "mkdir dir; mkfifo pipe; mkdir with; mkfifo with/pipe",
        artifacts=[{"path": "dir"}, {"path": "pipe"}, {"path": "with", "type": "directory"}],
    )

    assert resolved.phase is Phase.FAILED
    assert {artifact.kind for artifact in resolved.artifacts} == {ArtifactKind.ERROR}
    assert all("invalid-resource-on-worker" in artifact.message for artifact in resolved.artifacts)


async def test_a_symlink_as_artifact_never_reads_what_it_points_to(world: World) -> None:
    resolved, _ = await world.shell("ln -s /etc/passwd stolen", artifacts=[{"path": "stolen"}])

    assert resolved.phase is Phase.FAILED
    assert resolved.artifacts[0].kind is ArtifactKind.ERROR


async def test_a_run_is_killed_after_its_max_run_time_and_still_leaves_its_artifacts(world: World) -> None:
    resolved, log = await world.shell("echo partial >out; sleep 600", max_run_time="300ms", artifacts=[{"path": "out"}])

    assert (resolved.phase, resolved.end) == (Phase.FAILED, "timed-out")
    assert "max_run_time" in log
    assert "max_run_time" in resolved.message
    assert resolved.artifacts[0].kind is ArtifactKind.FILE


async def test_a_status_in_retry_statuses_asks_for_another_run(world: World) -> None:
    resolved, _ = await world.shell("exit 75", retry_statuses=[75])

    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, Reason.INTERMITTENT_TASK)
    assert resolved.exit_status == 75


async def test_a_status_in_success_statuses_completes(world: World) -> None:
    resolved, _ = await world.shell("exit 2", success_statuses=[0, 2])

    assert resolved.phase is Phase.COMPLETED


async def test_a_secret_never_reaches_the_log_however_it_is_written(world: World) -> None:
    script = 'printf %s "$TOKEN"; printf hun; sleep 0.3; printf "ter2\\n"; echo "$TOKEN" >&2; echo done'
    ref = await world.source.submit(
        {"command": ["sh", "-c", script], "secrets": {"TOKEN": "api"}}, secrets={"api": "hunter2"}
    )
    resolved = await world.source.wait_resolved(ref)

    log = world.sink.text(ref)
    assert resolved.phase is Phase.COMPLETED
    assert "hunter2" not in log
    assert "hun" not in log
    assert "***" in log
    assert log.endswith("done\n")


async def test_a_secret_that_the_tenant_does_not_have_is_a_malformed_payload(world: World) -> None:
    resolved, _ = await world.run("true", secrets={"TOKEN": "absent"})

    assert resolved.reason is Reason.MALFORMED_PAYLOAD
    assert '"absent"' in resolved.message


async def test_a_huge_line_and_bytes_that_are_no_text_pass_unchanged(world: World) -> None:
    size = 20 * MIB

    resolved, _ = await world.shell(f"head -c {size} /dev/zero; printf '\\377\\376\\033[31m'")
    (log,) = world.sink.logs.values()

    assert resolved.phase is Phase.COMPLETED
    assert len(log) == size + 7
    assert log.endswith(b"\xff\xfe\x1b[31m")


async def test_the_log_is_readable_while_the_command_still_runs(world: World) -> None:
    ref = await world.start("echo early; sleep 600")

    await eventually(lambda: world.sink.text(ref) == "early\n")
    world.worker.cancel([ref])

    assert ref not in world.sink.closed


async def test_a_command_that_writes_more_than_the_log_may_hold_is_killed(tmp_path: Path) -> None:
    async with a_world(tmp_path, livelog=LiveLogConfig(log_bytes_max=100_000)) as world:
        resolved, log = await world.shell("yes")

    assert (resolved.phase, resolved.end) == (Phase.FAILED, "output-limit"), resolved.message
    assert "more than 97.7 KiB of output" in resolved.message
    assert len(log) < 101_000


async def test_a_cancel_kills_the_process_tree_within_a_second_and_tells_the_queue_nothing(world: World) -> None:
    ref = await world.start("trap '' TERM; (setsid sleep 601 &) ; sleep 602")
    loop = asyncio.get_running_loop()
    began = loop.time()

    world.worker.cancel([ref])
    await eventually(lambda: ref not in world.worker.runs)

    assert loop.time() - began < 1.0
    assert world.source.held[ref.task_id].resolved is None
    assert processes_with("sleep\x00602") == []
    assert processes_with("sleep\x00601") == []
    assert world.worker.statistics().aborted == 1


async def test_a_run_whose_lease_was_taken_away_is_aborted_at_the_next_renewal(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        ref = await world.start("sleep 600")
        await world.source.lose(ref)
        await eventually(lambda: ref not in world.worker.runs)

        assert world.worker.statistics().leases_lost == 1
        assert world.source.held[ref.task_id].resolved is None


async def test_a_worker_that_is_cut_off_aborts_its_runs_when_their_leases_end(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        ref = await world.start("sleep 600")
        world.source.down = True
        await eventually(lambda: ref not in world.worker.runs)

        assert world.worker.statistics().leases_lost == 1
        assert world.worker.statistics().slots_free == 4


async def test_leases_are_renewed_for_as_long_as_the_command_runs(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        resolved, _ = await world.shell("sleep 1.5")

        assert resolved.phase is Phase.COMPLETED


async def test_a_report_is_told_again_until_the_scheduler_answers(world: World) -> None:
    ref = await world.start("sleep 0.2")
    world.source.down = True
    await eventually(lambda: world.worker.statistics().executing == 0)
    world.source.down = False

    resolved = await world.source.wait_resolved(ref)

    assert resolved.phase is Phase.COMPLETED


async def test_a_drain_finishes_what_runs_and_takes_nothing_new(world: World) -> None:
    ref = await world.start("sleep 0.3; echo finished")
    claims = len(world.source.slots_asked)
    world.worker.drain()

    async with asyncio.timeout(10):
        await world.working

    resolved = world.source.held[ref.task_id].resolved
    assert resolved is not None
    assert resolved.phase is Phase.COMPLETED
    assert len(world.source.slots_asked) == claims


async def test_a_worker_on_hold_takes_nothing_until_it_is_let_go(world: World) -> None:
    running = await world.start("sleep 0.2")
    world.worker.hold(on=True)
    assert (await world.source.wait_resolved(running)).phase is Phase.COMPLETED
    await eventually(lambda: not world.worker.runs)
    waiting = await world.source.submit({"command": ["true"]})
    assert world.worker.slots_free == 0
    assert waiting.task_id not in world.source.held

    world.worker.hold(on=False)

    assert (await world.source.wait_resolved(waiting)).phase is Phase.COMPLETED


async def test_a_stop_now_ends_runs_as_worker_shutdown_so_that_the_queue_starts_them_elsewhere(world: World) -> None:
    ref = await world.start("sleep 600")
    world.worker.stop_now("the machine goes away")

    with pytest.raises(WorkerStopped, match="the machine goes away"):
        async with asyncio.timeout(10):
            await world.working

    resolved = world.source.held[ref.task_id].resolved
    assert resolved is not None
    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, Reason.WORKER_SHUTDOWN)
    assert "worker-shutdown" in world.sink.text(ref)


async def test_claims_never_exceed_the_free_slots(world: World) -> None:
    refs = [await world.source.submit({"command": ["sh", "-c", "sleep 0.05"]}) for _ in range(12)]
    for ref in refs:
        resolved = await world.source.wait_resolved(ref)
        assert resolved.phase is Phase.COMPLETED

    assert max(world.source.slots_asked) <= 4


async def test_a_named_cache_comes_back_and_belongs_to_its_tenant_alone(world: World) -> None:
    caches = [{"name": "objects", "path": "cache"}]
    script = (
        "cat cache/count 2>/dev/null || echo none; mkdir -p cache/d; echo kept >cache/count; ln -sf count cache/d/l"
    )

    _, first = await world.shell(script, caches=caches)
    failed, second = await world.shell(f"{script}; exit 1", caches=caches)
    _, third = await world.shell("cat cache/count; readlink cache/d/l", caches=caches)
    other = await world.source.submit({"command": ["sh", "-c", script], "caches": caches}, tenant="other")
    await world.source.wait_resolved(other)

    assert (first, second, third) == ("none\n", "kept\n", "kept\ncount\n")
    assert failed.phase is Phase.FAILED
    assert world.sink.text(other) == "none\n"


async def test_two_runs_of_one_cache_at_the_same_time_have_an_instance_each(world: World) -> None:
    caches = [{"name": "c", "path": "cache"}]
    script = "mkdir -p cache; test ! -e cache/busy || exit 9; touch cache/busy; sleep 0.3; rm cache/busy"
    refs = [await world.source.submit({"command": ["sh", "-c", script], "caches": caches}) for _ in range(3)]

    ends = [await world.source.wait_resolved(ref) for ref in refs]

    assert [end.exit_status for end in ends] == [0, 0, 0]


async def test_runs_that_share_a_tree_as_cache_do_not_wait_for_each_other_nor_see_each_other(world: World) -> None:
    builder = TreeBuilder()
    builder.add_file("base", await write_bytes(world.blobs, TENANT, b"base"))
    caches = [{"tree": str(await builder.store(world.blobs, TENANT)), "path": "cache"}]
    first = await world.start("cat cache/base; echo mine >cache/mine; sleep 600", caches=caches)

    _, log = await world.shell("cat cache/base; ls cache", caches=caches)

    world.worker.cancel([first])
    assert log == "basebase\n"


async def test_a_canceled_run_leaves_the_old_content_of_its_cache(world: World) -> None:
    caches = [{"name": "c", "path": "cache"}]
    await world.shell("mkdir -p cache; echo old >cache/x", caches=caches)
    ref = await world.start("echo new >cache/x; sleep 600", caches=caches)
    world.worker.cancel([ref])
    await eventually(lambda: ref not in world.worker.runs)

    _, log = await world.shell("cat cache/x", caches=caches)

    assert log == "old\n"


async def test_caches_over_the_budget_are_evicted_between_runs_the_oldest_first(world: World) -> None:
    for name in ("old", "new"):
        caches = [{"name": name, "path": "cache"}]
        await world.shell("mkdir -p cache; head -c 700000 /dev/urandom >cache/big", caches=caches)

    await eventually(lambda: len(world.cache.shelf.instances) == 1)

    assert [instance.name for instance in world.cache.shelf.instances] == ["new"]


async def test_a_plugin_that_raises_what_nobody_expects_ends_in_an_incident_and_hurts_nobody_else(
    tmp_path: Path,
) -> None:
    class Bad(Plugin):
        name = "bad"

        def attach(self, run: Any, fields: Any) -> None:
            if run.core is not None and run.core.command[0] == "false":
                raise ZeroDivisionError("a secret of the worker")

    async with a_world(tmp_path, extra=(Bad(),)) as world:
        neighbour = await world.start("sleep 0.3")
        resolved, log = await world.run("false")
        other = await world.source.wait_resolved(neighbour)

    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, Reason.INTERNAL_ERROR)
    assert "incident inc_" in log
    assert "a secret of the worker" not in log + resolved.message
    assert other.phase is Phase.COMPLETED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreUnavailable("the store is away"), Reason.INTERMITTENT_TASK),
        (QuotaExceeded("the disk is full"), Reason.RESOURCE_UNAVAILABLE),
    ],
)
async def test_a_store_that_fails_under_a_run_is_told_by_its_kind(
    tmp_path: Path, error: Exception, reason: Reason
) -> None:
    class Broken(MemoryBlobs):
        async def write(self, *_: Any, **__: Any) -> None:
            raise error

    async with a_world(tmp_path, blobs=Broken()) as world:
        resolved, log = await world.shell("echo x >out", artifacts=[{"path": "out"}])

    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, reason)
    assert str(error) in log


async def test_a_slow_log_store_holds_the_command_back_instead_of_filling_the_memory(tmp_path: Path) -> None:
    async with a_world(tmp_path, livelog=LiveLogConfig(buffer_bytes=256 * 1024)) as world:
        world.sink.gate.clear()
        ref = await world.start("head -c 30000000 /dev/zero; echo end")
        await eventually(lambda: world.sink.appends > 0)
        assert ref in world.worker.runs
        assert world.source.held[ref.task_id].resolved is None
        world.sink.gate.set()

        resolved = await world.source.wait_resolved(ref)

    assert resolved.phase is Phase.COMPLETED
    assert resolved.log_bytes == 30_000_004


async def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 (the world is another process's as well: there is nothing to wait on)
            await asyncio.sleep(0.005)


def processes_with(words: str) -> list[int]:
    """Processes of this machine whose command line contains ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if words in line:
                found.append(int(entry.name))
    return found
