"""What goes into real runs and comes out of them: inputs, artifacts and caches."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.blobs.content import read_bytes, write_bytes
from corral.blobs.trees import TreeBuilder, walk_tree
from corral.kernel.digest import Digest
from corral.tasks.model import Artifact, ArtifactKind, Phase, Reason
from corral.testing.worker_world import TENANT, World, a_world, eventually


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


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


async def test_an_artifact_without_a_byte_is_one(world: World) -> None:
    resolved, _ = await world.shell("touch empty", artifacts=[{"path": "empty"}])

    assert resolved.phase is Phase.COMPLETED, resolved.message
    assert [Digest.parse(each.digest).size_bytes for each in resolved.artifacts] == [0]


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
