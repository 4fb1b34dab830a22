"""Trees: their encoding, and their way between a local directory and a store."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes, write_file, write_stream
from corral.blobs.local_trees import materialize, upload_directory
from corral.blobs.model import Directory, DirectoryNode, FileNode, NodeKind, SymlinkNode, TreeBounds, TreeSize
from corral.blobs.tree_machine import decode_directory, encode_directory
from corral.blobs.trees import TreeBuilder, tree_size, walk_tree
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import CorralError, InvalidSpec, NotFound, QuotaExceeded, TooLarge
from corral.testing.blob_contract import MIB, content_of

X = Digest.of(b"x")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DiskBlobs]:
    async with DiskBlobs(tmp_path / "store") as store:
        yield store


def make_project(top: Path) -> None:
    (top / "src" / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "src" / "main.c").write_bytes(b"int main(void) { return 0; }\n")
    (top / "src" / "deep" / "er" / "big").write_bytes(content_of(3 * MIB))
    (top / "src" / "deep" / "same").write_bytes(b"int main(void) { return 0; }\n")
    (top / "Configure").write_bytes(b"#!/bin/sh\n")
    (top / "Configure").chmod(0o755)
    (top / "configure").write_bytes(b"another one, in lower case\n")
    (top / "ünïcode näme").write_bytes(b"")
    (top / "src" / "link").symlink_to("../Configure")
    (top / "src" / "folder-link").symlink_to("deep/er")


def picture(top: Path) -> dict[str, object]:
    """Everything a tree keeps of a directory."""
    seen: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            seen[name] = ("link", os.readlink(path))
        elif path.is_dir():
            seen[name] = "folder"
        else:
            seen[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return seen


@pytest.mark.parametrize("function", list(HashFunction))
async def test_a_directory_comes_back_as_it_was(tmp_path: Path, store: DiskBlobs, function: HashFunction) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_project(source)

    digest = await upload_directory(store, "ann", source, function=function)
    size = await materialize(store, "ann", digest, target)

    assert picture(target) == picture(source)
    assert size == await tree_size(store, "ann", digest)
    assert (size.files, size.directories, size.symlinks) == (6, 4, 2)
    assert digest.function is function


async def test_equal_directories_have_one_digest_whatever_their_order_and_times(tmp_path: Path) -> None:
    store = MemoryBlobs()
    for name in ("one", "two"):
        make_project(tmp_path / name)
    os.utime(tmp_path / "two" / "Configure", (1, 1))

    one = await upload_directory(store, "ann", tmp_path / "one")
    two = await upload_directory(store, "ann", tmp_path / "two")
    (tmp_path / "two" / "Configure").chmod(0o644)
    changed = await upload_directory(store, "ann", tmp_path / "two")

    assert one == two
    assert changed != one


async def test_only_what_is_missing_is_sent(tmp_path: Path) -> None:
    class Counting(MemoryBlobs):
        writes = 0

        async def write(self, *args: object, **kwargs: object) -> None:
            self.writes += 1
            await super().write(*args, **kwargs)  # type: ignore[arg-type]

    store = Counting()
    make_project(tmp_path)
    await upload_directory(store, "ann", tmp_path)
    store.writes = 0
    (tmp_path / "empty" / "new").write_bytes(b"new")

    await upload_directory(store, "ann", tmp_path)

    assert store.writes == 3  # the file, its directory, the top


async def test_a_builder_and_a_directory_agree(tmp_path: Path) -> None:
    store = MemoryBlobs()
    make_project(tmp_path)
    digest = await upload_directory(store, "ann", tmp_path)
    builder = TreeBuilder()
    nodes = [node async for node in walk_tree(store, "ann", digest)]

    for node in reversed(nodes):
        if node.kind is NodeKind.DIRECTORY:
            builder.add_directory(node.path)
        elif node.digest is None:
            builder.add_symlink(node.path, node.target)
        else:
            builder.add_file(node.path, node.digest, executable=node.executable)

    assert await builder.store(store, "bob") == digest
    assert builder.size() == await tree_size(store, "ann", digest)
    paths = [node.path for node in nodes]
    assert all(paths.index(path.rpartition("/")[0]) < paths.index(path) for path in paths if "/" in path)


async def test_an_empty_directory_is_a_tree(tmp_path: Path) -> None:
    store = MemoryBlobs()
    (tmp_path / "source").mkdir()

    digest = await upload_directory(store, "ann", tmp_path / "source")

    assert await tree_size(store, "ann", digest) == TreeSize(files=0, directories=0, symlinks=0, total_bytes=0)
    await materialize(store, "ann", digest, tmp_path / "target")
    assert picture(tmp_path / "target") == {}


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "a/../../x", "./../x"])
async def test_a_symlink_that_leaves_the_directory_is_refused_by_name(tmp_path: Path, target: str) -> None:
    (tmp_path / "bad-link").symlink_to(target)

    with pytest.raises(InvalidSpec, match="bad-link"):
        await upload_directory(MemoryBlobs(), "ann", tmp_path)


async def test_special_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "my-fifo")
    (tmp_path / "socket").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket" / "my-socket"))

    with pytest.raises(InvalidSpec, match="my-fifo"):
        await upload_directory(MemoryBlobs(), "ann", tmp_path / "fifo")
    with pytest.raises(InvalidSpec, match="my-socket"):
        await upload_directory(MemoryBlobs(), "ann", tmp_path / "socket")


async def test_a_name_that_is_not_utf8_and_a_path_that_is_no_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"")

    with pytest.raises(InvalidSpec, match="UTF-8"):
        await upload_directory(MemoryBlobs(), "ann", tmp_path)
    with pytest.raises(InvalidSpec, match="not a directory"):
        await upload_directory(MemoryBlobs(), "ann", tmp_path / "absent")


@pytest.mark.parametrize(
    ("bounds", "limit"),
    [
        (TreeBounds(entries=3), "entries"),
        (TreeBounds(depth=1), "depth"),
        (TreeBounds(file_bytes=1000), "file_bytes"),
        (TreeBounds(total_bytes=3 * MIB), "total_bytes"),
    ],
)
async def test_bounds_hold_in_both_directions(tmp_path: Path, bounds: TreeBounds, limit: str) -> None:
    store = MemoryBlobs()
    make_project(tmp_path / "source")
    digest = await upload_directory(store, "ann", tmp_path / "source")

    with pytest.raises(TooLarge, match=limit):
        await upload_directory(store, "ann", tmp_path / "source", bounds)
    with pytest.raises(TooLarge, match=limit):
        await tree_size(store, "ann", digest, bounds)
    with pytest.raises(TooLarge, match=limit):
        await materialize(store, "ann", digest, tmp_path / "target", bounds)
    assert not (tmp_path / "target").exists()


async def test_a_tree_bomb_ends_at_the_bounds() -> None:
    store = MemoryBlobs()
    digest = await write_bytes(store, "ann", encode_directory(Directory()))
    for _ in range(40):  # 2 ** 40 directories in 41 blobs
        both = tuple(DirectoryNode(name=name, digest=digest) for name in "ab")
        digest = await write_bytes(store, "ann", encode_directory(Directory(directories=both)))

    with pytest.raises(TooLarge, match="entries"):
        await tree_size(store, "ann", digest, TreeBounds(entries=5000))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", "x" * 256])
async def test_no_tree_has_such_a_name(name: str) -> None:
    for directory in (
        Directory(files=(FileNode(name=name, digest=X),)),
        Directory(directories=(DirectoryNode(name=name, digest=X),)),
        Directory(symlinks=(SymlinkNode(name=name, target="x"),)),
    ):
        with pytest.raises(InvalidSpec):
            decode_directory(msgspec.json.encode(directory))
    with pytest.raises(InvalidSpec):
        TreeBuilder().add_file(f"folder/{name}/", X)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"files":1}',
        b'{"files":[],"directories":[],"symlinks":[],"more":1}',
        b'{"files":[],"directories":[], "symlinks":[]}',
        b'{"files":[]}',
        b"\xff\xfe",
        msgspec.json.encode(Directory(files=(FileNode(name="b", digest=X), FileNode(name="a", digest=X)))),
        msgspec.json.encode(
            Directory(files=(FileNode(name="a", digest=X),), symlinks=(SymlinkNode(name="a", target="b"),))
        ),
        msgspec.json.encode(Directory(files=(FileNode(name="a", digest=Digest(HashFunction.BLAKE3, "../../x", 1)),))),
        msgspec.json.encode(Directory(symlinks=(SymlinkNode(name="a", target=""),))),
    ],
)  # fmt: skip
def test_only_the_canonical_encoding_is_a_directory(data: bytes) -> None:
    with pytest.raises(InvalidSpec):
        decode_directory(data)


async def test_an_escaping_symlink_in_the_store_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    store = MemoryBlobs()
    evil = Directory(symlinks=(SymlinkNode(name="evil", target="../../etc"),))
    digest = await write_bytes(store, "ann", encode_directory(evil))

    with pytest.raises(InvalidSpec, match="outside"):
        await materialize(store, "ann", digest, tmp_path / "target")

    assert not (tmp_path / "target").exists()


async def test_what_is_not_whole_says_what_is_absent_and_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryBlobs()
    make_project(tmp_path / "source")
    digest = await upload_directory(store, "ann", tmp_path / "source")
    nodes = {node.path: node async for node in walk_tree(store, "ann", digest)}
    target = tmp_path / "target"
    target.mkdir()
    for path in ("src/deep", "src/deep/er/big"):
        gone = nodes[path].digest
        assert gone is not None
        await store.delete("ann", [gone])

        with pytest.raises(NotFound):
            await materialize(store, "ann", digest, target)

        assert list(target.iterdir()) == []
        await upload_directory(store, "ann", tmp_path / "source")
    with pytest.raises(NotFound):
        await tree_size(store, "bob", digest)


async def test_a_folder_with_something_in_it_is_not_written_into(tmp_path: Path) -> None:
    store = MemoryBlobs()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("keep")
    digest = await TreeBuilder().store(store, "ann")

    with pytest.raises(InvalidSpec, match="not an empty directory"):
        await materialize(store, "ann", digest, tmp_path / "target")

    assert (tmp_path / "target" / "mine").read_text() == "keep"


def test_a_path_can_be_taken_only_once() -> None:
    builder = TreeBuilder()
    builder.add_file("a/b", X)

    for path in ("a/b", "a", "a/b/c"):
        with pytest.raises(InvalidSpec):
            builder.add_file(path, X)
    with pytest.raises(InvalidSpec):
        builder.add_symlink("a/b", "c")
    with pytest.raises(InvalidSpec):
        builder.add_directory("a/b")


async def test_files_and_streams_find_their_own_digest(tmp_path: Path, store: DiskBlobs) -> None:
    data = content_of(2 * MIB + 5)
    (tmp_path / "file").write_bytes(data)

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    assert await write_file(store, "ann", tmp_path / "file") == Digest.of(data)
    assert await write_stream(store, "bob", stream(), spool_dir=tmp_path, bytes_max=len(data)) == Digest.of(data)
    assert await store.find_missing("bob", [Digest.of(data)]) == frozenset()
    with pytest.raises(TooLarge):
        await write_stream(store, "eve", stream(), spool_dir=tmp_path, bytes_max=len(data) - 1)


async def test_an_upload_that_does_not_fit_ends_in_one_plain_error(tmp_path: Path) -> None:
    make_project(tmp_path)

    with pytest.raises(CorralError) as caught:
        await upload_directory(MemoryBlobs(quota_bytes=lambda _tenant: 100), "ann", tmp_path)

    assert isinstance(caught.value, QuotaExceeded)


async def test_a_cancelled_materialization_leaves_nothing(tmp_path: Path) -> None:
    class Stopping(MemoryBlobs):
        reached = asyncio.Event()

        async def read(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            async for piece in super().read(*args, **kwargs):  # type: ignore[arg-type]
                if len(piece) == MIB:
                    self.reached.set()
                    await asyncio.Event().wait()
                yield piece

    store = Stopping()
    make_project(tmp_path / "source")
    digest = await upload_directory(store, "ann", tmp_path / "source")

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        working = group.create_task(materialize(store, "ann", digest, tmp_path / "target"))
        await store.reached.wait()
        working.cancel()

    assert not (tmp_path / "target").exists()
