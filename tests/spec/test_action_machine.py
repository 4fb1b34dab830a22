"""What actions mean, decided purely: platforms, paths, trees, ends, and what differs between two."""

import pytest

from corral.actions.adapters.messages import (
    read_action,
    read_command,
    read_directory,
    read_result,
    read_tree,
    write_action,
    write_command,
    write_directory,
    write_result,
    write_tree,
)
from corral.actions.building import TreeBuilder
from corral.actions.explain import WholeAction, explain
from corral.actions.machine import (
    Platform,
    TreeGuards,
    below_root,
    check_directory,
    ended_as,
    parents_of,
    properties_of,
    read_platform,
    total_of,
    with_pool,
)
from corral.actions.model import (
    Action,
    ActionDirectory,
    ActionFile,
    ActionResult,
    ActionSubdirectory,
    ActionSymlink,
    ActionTimes,
    Command,
    Ended,
    OutputDirectory,
    OutputFile,
    OutputStyle,
    OutputSymlink,
)
from corral.actions.payload import ActionPayload, payload_mistakes, read_payload, write_payload
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec, TooLarge
from corral.sandboxes.model import End, ExecResult, Size
from corral.testing.actions import build_action, replace_struct, shell
from corral.wire.reapi import remote_execution_pb2 as pb

SHA = HashFunction.SHA256
ANY = TreeGuards(entries=1_000_000, total_bytes=2**40, depth=128)


def digest(text: str, size_bytes: int | None = None) -> Digest:
    found = Digest.of(text.encode(), SHA)
    return found if size_bytes is None else Digest(SHA, found.hash, size_bytes)


# ---- bytes ----


def test_an_action_and_its_command_come_back_as_they_were() -> None:
    action = Action(
        command=digest("c"),
        input_root=digest("r"),
        timeout_s=1.5,
        do_not_cache=True,
        salt=b"\0x",
        platform=(("image", "a"), ("pool", "b")),
    )
    new = Command(
        arguments=("a", ""),
        environment=(("A", "1"), ("B", "")),
        output_paths=("x", "y"),
        working_directory="w",
        platform=(("memory", "1GB"),),
        root_directories=True,
    )
    old = replace_struct(new, output_paths=(), style=OutputStyle.FILES, output_files=("f",), output_directories=("d",))

    assert read_action(write_action(action), SHA) == action
    assert [read_command(write_command(each)) for each in (new, old)] == [new, old]


def test_a_result_comes_back_as_it_was() -> None:
    result = ActionResult(
        exit_code=3,
        files=(OutputFile("f", digest("f"), True),),
        directories=(OutputDirectory("d", digest("t")), OutputDirectory("e", digest("t"), digest("r"))),
        symlinks=(OutputSymlink("l", "f"),),
        file_symlinks=(OutputSymlink("m", "f"),),
        directory_symlinks=(OutputSymlink("n", "d"),),
        stdout=b"o",
        stderr_digest=digest("e"),
        worker="wrk",
        times=ActionTimes(queued_s=1_800_000_000.25, execution_start_s=1_800_000_001.5),
    )

    assert read_result(write_result(result), SHA) == result


@pytest.mark.parametrize("read", [read_action, read_directory, read_result, read_tree])
def test_bytes_of_something_else_are_refused(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidSpec, match="not an encoded"):
        read(b"\xff\xff\xff\xff", SHA)


@pytest.mark.parametrize(("hash_", "size"), [("", 0), ("xyz", 3), ("A" * 64, 3), ("a" * 64, -1), ("a" * 40, 3)])
def test_a_digest_that_is_none_is_refused(hash_: str, size: int) -> None:
    message = pb.Directory(files=[pb.FileNode(name="f", digest=pb.Digest(hash=hash_, size_bytes=size))])

    with pytest.raises(InvalidSpec, match="is not a digest"):
        read_directory(message.SerializeToString(), SHA)


# ---- trees ----


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", "x" * 256])
def test_a_name_that_is_no_part_of_a_path_is_refused(name: str) -> None:
    for directory in (
        ActionDirectory(files=(ActionFile(name, digest("f")),)),
        ActionDirectory(directories=(ActionSubdirectory(name, digest("d")),)),
        ActionDirectory(symlinks=(ActionSymlink(name, "t"),)),
    ):
        with pytest.raises(InvalidSpec):
            check_directory(directory)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidSpec, match='two entries named "a"'):
        check_directory(ActionDirectory((ActionFile("a", digest("f")),), (ActionSubdirectory("a", digest("d")),)))


def test_a_directory_that_contains_itself_is_refused() -> None:
    one, two = digest("one"), digest("two")
    around = {
        one: ActionDirectory(directories=(ActionSubdirectory("x", two),)),
        two: ActionDirectory(directories=(ActionSubdirectory("y", one),)),
    }

    with pytest.raises(InvalidSpec, match="contains itself"):
        total_of(one, around, ANY)


def test_a_small_tree_that_stands_for_billions_of_files_is_refused_at_once() -> None:
    directories = {digest("0"): ActionDirectory(files=(ActionFile("f", digest("f", 1)),))}
    for level in range(1, 60):
        below = digest(str(level - 1))
        both = (ActionSubdirectory("a", below), ActionSubdirectory("b", below))
        directories[digest(str(level))] = ActionDirectory(directories=both)

    with pytest.raises(TooLarge, match="1000000 entries"):
        total_of(digest("59"), directories, ANY)


def test_a_tree_is_added_up_with_every_repetition() -> None:
    leaf = ActionDirectory(files=(ActionFile("f", digest("f", 10)), ActionFile("g", digest("g", 5))))
    top = ActionDirectory(
        directories=(ActionSubdirectory("a", digest("leaf")), ActionSubdirectory("b", digest("leaf")))
    )

    totals = total_of(digest("top"), {digest("top"): top, digest("leaf"): leaf}, ANY)

    assert (totals.files, totals.entries, totals.total_bytes, totals.depth) == (4, 6, 30, 2)


@pytest.mark.parametrize(
    ("guards", "words"),
    [
        (TreeGuards(entries=2, total_bytes=100, depth=9), "more than 2 entries"),
        (TreeGuards(entries=9, total_bytes=10, depth=9), "larger than"),
        (TreeGuards(entries=9, total_bytes=100, depth=2), "deeper than 2"),
    ],
)
def test_each_guard_of_a_tree_is_named(guards: TreeGuards, words: str) -> None:
    top, middle, leaf = digest("top"), digest("middle"), digest("leaf")
    directories = {
        top: ActionDirectory(directories=(ActionSubdirectory("m", middle),)),
        middle: ActionDirectory(directories=(ActionSubdirectory("l", leaf),)),
        leaf: ActionDirectory(files=(ActionFile("f", digest("f", 20)),)),
    }

    with pytest.raises(TooLarge, match=words):
        total_of(top, directories, guards)


def test_a_built_tree_has_each_directory_once_and_parents_first() -> None:
    builder = TreeBuilder(SHA)
    for path in ("a/same/f", "b/deep/same/f", "same/f"):
        builder.add_file(path, digest("f"))
    builder.add_symlink("l", "a")

    built = builder.build()
    again = read_tree(write_tree(built.top, built.below), SHA)

    assert built.root == Digest.of(write_directory(built.top), SHA)
    assert again == (built.top, *built.below)
    places = {Digest.of(write_directory(directory), SHA): place for place, directory in enumerate(again)}
    for place, directory in enumerate(again):
        assert all(places[each.digest] > place for each in directory.directories)
    assert len(places) == len(again) == 4  # a and b/deep are one


def test_a_path_of_a_tree_may_not_be_two_things() -> None:
    builder = TreeBuilder(SHA)
    builder.add_file("a", digest("f"))

    for wrong in ("a", "a/b", ""):
        with pytest.raises(InvalidSpec):
            builder.add_file(wrong, digest("f"))


# ---- platforms and paths ----


def test_a_platform_is_read_whatever_its_client_calls_things() -> None:
    command = Command(arguments=("x",), platform=(("memory", "1GB"),))
    action = Action(
        command=digest("c"),
        input_root=digest("r"),
        platform=(
            ("OSFamily", "Linux"),
            ("container-image", "docker://debian@sha256:" + "a" * 64),
            ("dockerNetwork", "standard"),
            ("cpus", "1.5"),
        ),
    )

    platform = read_platform(properties_of(action, command))

    assert platform == Platform(image="debian@sha256:" + "a" * 64, network=True, cpus=1.5)
    assert read_platform(properties_of(replace_action(action), command)).memory_bytes == 10**9
    assert platform.size(Size()).cpus == 1.5


def replace_action(action: Action) -> Action:
    return Action(command=action.command, input_root=action.input_root)


def test_all_mistakes_of_a_platform_are_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as raised:
        read_platform({"imag": "x", "cpus": "many", "memory": "0", "network": "perhaps", "files": "-1"})

    assert len(raised.value.mistakes) == 5


def test_a_property_of_its_own_stands_over_the_pool_s() -> None:
    pools = {"big": {"memory": "8GB", "runtime": "oci"}}

    assert with_pool({"pool": "big", "memory": "2GB"}, pools)["memory"] == "2GB"
    assert with_pool({"pool": "default"}, pools) == {"pool": "default"}
    with pytest.raises(InvalidSpec, match="there are: big, default"):
        with_pool({"pool": "small"}, pools)


def test_paths_start_at_the_working_directory_and_stay_in_the_input_root() -> None:
    command = Command(arguments=("x",), working_directory="a/b", output_paths=("out/x", "../y", "."))

    assert [below_root(command, path) for path in command.outputs] == ["a/b/out/x", "a/y", "a/b"]
    assert parents_of(command) == ("a", "a/b", "a/b/out")
    with pytest.raises(InvalidSpec, match="leads out"):
        below_root(command, "../../../z")


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        (End.EXITED, Ended.EXITED),
        (End.SIGNALED, Ended.SIGNALED),
        (End.TIMED_OUT, Ended.TIMED_OUT),
        (End.OUT_OF_MEMORY, Ended.LIMIT),
        (End.OUTPUT_LIMIT, Ended.LIMIT),
        (End.NOT_STARTED, Ended.NOT_STARTED),
    ],
)
def test_every_end_of_a_command_has_a_name_of_its_own(end: End, ended: Ended) -> None:
    assert ended_as(ExecResult(end=end)) is ended


def test_a_payload_of_the_queue_is_read_or_refused_by_name() -> None:
    payload = ActionPayload(digest=str(digest("a")), platform={"cpus": "1"}, timeout_s=2.0, queued_s=5.0)

    assert read_payload(write_payload(payload)) == payload
    assert payload_mistakes({"action": {"digest": "nonsense"}})
    assert "command" in payload_mistakes({"action": {"digest": str(digest("a"))}, "command": ["x"]})[0]
    assert payload_mistakes({"action": {"digest": str(digest("a")), "timeout_s": -1}})


# ---- explain ----


def whole(command: Command, inputs: dict[str, bytes], **more: object) -> WholeAction:
    built = build_action(command, inputs, **more)  # type: ignore[arg-type]
    directories = {}
    waiting = [built.action.input_root]
    while waiting:
        each = waiting.pop()
        directories[each] = read_directory(built.blobs[each], SHA)
        waiting += [below.digest for below in directories[each].directories]
    return WholeAction(built.action, command, directories)


def test_equal_actions_differ_in_nothing() -> None:
    assert explain(whole(shell("x"), {"a": b"1"}), whole(shell("x"), {"a": b"1"})) == []


def test_what_differs_is_named_inputs_first() -> None:
    before = whole(
        replace_struct(shell("make -O2"), environment=(("A", "1"), ("B", "2"))), {"src/a.h": b"1", "src/b.h": b"2"}
    )
    after = whole(
        replace_struct(shell("make -O3"), environment=(("A", "9"), ("C", "2"))),
        {"src/a.h": b"3", "src/c.h": b"2"},
        timeout_s=5.0,
        salt=b"x",
    )

    found = explain(before, after)

    assert found[0].startswith("the input src/a.h was sha256:")
    assert found[1:] == [
        "the input src/b.h is gone",
        "the input src/c.h is new",
        'argument 2 was "make -O2" and is "make -O3"',
        'the environment variable A was "1" and is "9"',
        'the environment variable B is gone; it was "2"',
        'the environment variable C is new: "2"',
        'the timeout was "None" and is "5.0"',
        'the salt was "" and is "78"',
    ]


def test_a_difference_in_ten_thousand_inputs_ends_in_a_bounded_list() -> None:
    found = explain(whole(shell("x"), {}), whole(shell("x"), {f"f{n}": b"" for n in range(10_000)}))

    assert len(found) == 101
    assert found[-1] == "and more"
