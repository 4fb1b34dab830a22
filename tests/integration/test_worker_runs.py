"""A worker carries out real runs in real sandboxes, against a queue and a log in memory."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.kernel.errors import QuotaExceeded, StoreUnavailable
from corral.sandboxes.model import MIB
from corral.tasks.model import ArtifactKind, Phase, Reason, Started
from corral.tasks.plugin import Plugin
from corral.tasks.plugins.livelog import LiveLogConfig
from corral.testing.worker_world import World, a_world, eventually


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
