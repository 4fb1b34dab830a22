"""Files and trees through the real agent, with every attack that a tree can carry."""

import os
import socket
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

import psutil
import pytest

from corral.kernel.errors import InvalidSpec, NotFound, SandboxFailed, SandboxLost, TooLarge
from corral.sandboxes.link import Setup, files, protocol
from corral.sandboxes.model import EntryKind, ExecRequest, TreeEntry, TreeLimits
from corral.sandboxes.sandbox import Sandbox
from corral.testing.bare_agent import bare_sandbox


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with bare_sandbox() as (made, _):
        yield made


def file(path: str, data: bytes, *, executable: bool = False) -> tuple[TreeEntry, AsyncIterable[bytes]]:
    entry = TreeEntry(path=path, kind=EntryKind.FILE, size_bytes=len(data), executable=executable)
    return entry, pieces(data)


def directory(path: str) -> tuple[TreeEntry, AsyncIterable[bytes]]:
    return TreeEntry(path=path, kind=EntryKind.DIRECTORY), pieces()


def symlink(path: str, target: str) -> tuple[TreeEntry, AsyncIterable[bytes]]:
    return TreeEntry(path=path, kind=EntryKind.SYMLINK, target=target), pieces()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def stream(
    *entries: tuple[TreeEntry, AsyncIterable[bytes]],
) -> AsyncIterator[tuple[TreeEntry, AsyncIterable[bytes]]]:
    for entry in entries:
        yield entry


async def read(sandbox: Sandbox, path: Path, limits: TreeLimits | None = None) -> dict[str, tuple[TreeEntry, bytes]]:
    return {
        entry.path: (entry, b"".join([data async for data in content]))
        async for entry, content in sandbox.read_tree(str(path), limits or TreeLimits())
    }


async def put_unchecked(sandbox: Sandbox, base: Path, entry: TreeEntry) -> None:
    """Past the host's own checks: what the agent itself refuses."""
    link = sandbox._link
    put = link.open_stream(protocol.T_PUT, protocol.encode_put(str(base), make_base=False))
    put.send(protocol.T_ENTRY, protocol.encode_entry(entry))
    put.send(protocol.T_PUT_END)
    await files._answer(link, put, protocol.T_DONE)


async def test_a_tree_goes_in_and_comes_out_the_same(sandbox: Sandbox, tmp_path: Path) -> None:
    big = os.urandom(1_000_000)
    entries = (directory("d"), file("d/big", big), file("d/run", b"#!", executable=True), symlink("l", "/nowhere"))

    written = await sandbox.write_tree(str(tmp_path / "new" / "base"), stream(*entries, file("deep/er/x", b"")))
    back = await read(sandbox, tmp_path / "new" / "base")

    assert written == (5, 1_000_002)
    assert set(back) == {"d", "d/big", "d/run", "l", "deep", "deep/er", "deep/er/x"}
    assert back["d/big"][1] == big
    assert back["d/run"][0].executable
    assert not back["d/big"][0].executable
    assert back["l"][0].target == "/nowhere"


async def test_a_single_file_is_written_read_and_described(sandbox: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    await sandbox.write_file(path, pieces(b"one", b"two"), executable=True)
    await sandbox.write_file(path, b"shorter")

    assert b"".join([data async for data in sandbox.read_file(path)]) == b"shorter"
    assert (await sandbox.stat(path)).size_bytes == 7
    assert (await sandbox.space(str(tmp_path))).total_bytes > 0


async def test_what_is_not_there_is_not_found(sandbox: Sandbox, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")

    with pytest.raises(NotFound):
        await sandbox.stat(missing)
    with pytest.raises(NotFound):
        [data async for data in sandbox.read_file(missing)]
    with pytest.raises(NotFound):
        await sandbox.space(missing)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "a//b", "./a", "", "a/.", "x/" * 200 + "x", "n" * 300])
async def test_paths_that_leave_are_refused_by_the_agent_itself(sandbox: Sandbox, tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidSpec):
        await put_unchecked(sandbox, tmp_path, TreeEntry(path=path, kind=EntryKind.FILE))

    assert os.listdir(tmp_path) == []


async def test_a_symlink_in_the_way_is_never_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    outside, base = tmp_path / "outside", tmp_path / "base"
    outside.mkdir()

    with pytest.raises(InvalidSpec, match="symlink"):
        await sandbox.write_tree(str(base), stream(symlink("out", str(outside)), file("out/x", b"x")))

    assert list(outside.iterdir()) == []


async def test_a_file_replaces_a_symlink_or_hard_link_and_never_writes_through_it(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    secret, base = tmp_path / "secret", tmp_path / "base"
    secret.write_text("kept")
    base.mkdir()
    (base / "soft").symlink_to(secret)
    (base / "hard").hardlink_to(secret)

    await sandbox.write_tree(str(base), stream(file("soft", b"new"), file("hard", b"new")))

    assert secret.read_text() == "kept"
    assert (base / "soft").read_text() == (base / "hard").read_text() == "new"


async def test_devices_fifos_and_sockets_do_not_come_out(sandbox: Sandbox, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))

        for name in ("fifo", "socket"):
            with pytest.raises(InvalidSpec, match="device, fifo or socket"):
                await sandbox.stat(str(tmp_path / name))
        with pytest.raises(InvalidSpec, match="device, fifo or socket"):
            await read(sandbox, tmp_path)
    with pytest.raises(InvalidSpec, match="device, fifo or socket"):
        [data async for data in sandbox.read_file("/dev/zero")]


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/self/mem", "/proc/1/fd"])
async def test_the_kernels_files_do_not_come_out(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(InvalidSpec):
        [data async for data in sandbox.read_file(path)]


async def test_a_symlink_comes_out_as_itself(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "passwd").symlink_to("/etc/passwd")

    back = await read(sandbox, tmp_path)

    assert (back["passwd"][0].kind, back["passwd"][1]) == (EntryKind.SYMLINK, b"")
    with pytest.raises(InvalidSpec, match="regular"):
        [data async for data in sandbox.read_file(str(tmp_path / "passwd"))]


@pytest.mark.parametrize(
    "limits",
    [TreeLimits(entries=2), TreeLimits(total_bytes=25), TreeLimits(file_bytes=9), TreeLimits(depth=1)],
    ids=["entries", "total", "file", "depth"],
)
async def test_every_limit_stops_a_tree_in_both_directions(
    sandbox: Sandbox, tmp_path: Path, limits: TreeLimits
) -> None:
    tree = [file(name, b"0123456789") for name in ("a", "b", "d/c")]
    with pytest.raises(TooLarge):
        await sandbox.write_tree(str(tmp_path / "in"), stream(*tree), limits)

    await sandbox.write_tree(str(tmp_path / "out"), stream(*[file(name, b"0123456789") for name in ("a", "b", "d/c")]))
    with pytest.raises(TooLarge):
        await read(sandbox, tmp_path / "out", limits)


async def test_content_of_another_length_than_its_entry_is_refused_and_leaves_no_file(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    short = TreeEntry(path="f", kind=EntryKind.FILE, size_bytes=5), pieces(b"1234")

    with pytest.raises(InvalidSpec, match="5"):
        await sandbox.write_tree(str(tmp_path), stream(short))

    await sandbox.ping()
    assert os.listdir(tmp_path) == []


async def test_a_reader_that_leaves_early_frees_the_agents_descriptors(sandbox: Sandbox, tmp_path: Path) -> None:
    await sandbox.write_file(str(tmp_path / "big"), b"x" * 3_000_000)
    agent = psutil.Process(sandbox._link.agent_pid)
    before = agent.num_fds()

    for _ in range(20):
        tree = files.get_tree(sandbox._link, str(tmp_path), TreeLimits())
        await anext(tree)
        await tree.aclose()
    await sandbox.ping()

    assert agent.num_fds() == before


async def test_reset_empties_the_writable_folders_whatever_lies_in_them(tmp_path: Path) -> None:
    elsewhere, work = tmp_path / "elsewhere", tmp_path / "work"
    elsewhere.mkdir()
    work.mkdir()
    (elsewhere / "kept").write_text("kept")
    async with bare_sandbox(Setup(writable=(str(work),))) as (sandbox, _):
        (work / "link").symlink_to(elsewhere)
        deep = work
        for _ in range(300):
            deep = deep / "d"
            deep.mkdir()
        (deep / "f").write_text("x")
        for number in range(2000):
            (work / f"{number}").touch()
        (work / "closed").mkdir(mode=0o000)
        work.chmod(0o777)
        mode = work.stat().st_mode

        clean = await sandbox.reset()

        assert clean
        assert list(work.iterdir()) == []
        assert work.stat().st_mode != mode
        assert (elsewhere / "kept").read_text() == "kept"
        assert not sandbox.soiled


async def test_reset_says_no_while_something_runs(sandbox: Sandbox) -> None:

    running = await sandbox.start(ExecRequest(argv=("/bin/sleep", "100")))

    assert not await sandbox.reset()
    assert sandbox.soiled
    await running.kill_and_wait()


async def test_a_setup_that_cannot_be_carried_out_says_why(tmp_path: Path) -> None:

    with pytest.raises(SandboxFailed, match="writable folder"):
        async with bare_sandbox(Setup(writable=(str(tmp_path / "missing"),))):
            pass


async def test_operations_on_a_lost_sandbox_say_that_it_is_lost() -> None:
    async with bare_sandbox() as (sandbox, box):
        box.agent.kill()
        await sandbox.wait_lost()

        with pytest.raises(SandboxLost):
            await sandbox.run("/bin/true")
        with pytest.raises(SandboxLost):
            await sandbox.stat("/")
