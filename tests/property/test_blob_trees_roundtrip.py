"""Any tree survives its encoding, and nothing but a tree passes for one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.blobs.model import Directory, FileNode
from corral.blobs.tree_machine import decode_directory, encode_directory
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
files = st.lists(
    st.builds(FileNode, name=names, digest=st.binary().map(Digest.of), executable=st.booleans()),
    unique_by=lambda file: file.name,
    max_size=8,
)


@settings(derandomize=True, deadline=None)
@given(files)
def test_the_order_of_nodes_does_not_matter(nodes: list[FileNode]) -> None:
    encoded = encode_directory(Directory(files=tuple(nodes)))

    assert encode_directory(Directory(files=tuple(reversed(nodes)))) == encoded
    assert sorted(decode_directory(encoded).files, key=lambda file: file.name) == sorted(
        nodes, key=lambda file: file.name
    )


@settings(derandomize=True, deadline=None, max_examples=100)
@given(files, st.data())
def test_a_changed_byte_never_passes_for_the_same_tree(nodes: list[FileNode], data: st.DataObject) -> None:
    encoded = encode_directory(Directory(files=tuple(nodes)))
    position = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    changed[position] ^= data.draw(st.integers(1, 255))

    try:
        found = decode_directory(bytes(changed))
    except InvalidSpec:
        return
    assert encode_directory(found) == bytes(changed) != encoded


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_crashes(data: bytes) -> None:
    try:
        directory = decode_directory(data)
    except InvalidSpec:
        return
    assert encode_directory(directory) == data
