"""The host trusts nothing that comes out of a sandbox: any bytes, cut anywhere, give frames or a ProtocolError."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.sandboxes.link import protocol
from corral.sandboxes.link.files import _Order
from corral.sandboxes.link.protocol import Frame, FrameDecoder, ProtocolError
from corral.sandboxes.model import EntryKind, TreeEntry

HEADER = Path(__file__).parents[2] / "native" / "agent" / "protocol.h"
FROM_AGENT = sorted(protocol._FROM_AGENT)
DECODERS: tuple[Callable[[bytes], object], ...] = (
    protocol.decode_u32,
    protocol.decode_sentence,
    protocol.decode_ready,
    protocol.decode_reset_done,
    protocol.decode_not_started,
    protocol.decode_exit,
    protocol.decode_entry,
    protocol.decode_done,
    protocol.decode_file_error,
    protocol.decode_space,
)
frames = st.builds(Frame, st.sampled_from(FROM_AGENT), st.integers(0, 2**32 - 1), st.binary(max_size=64))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def test_the_header_and_the_host_agree_on_every_number() -> None:
    numbers = {
        name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)U?\b", HEADER.read_text(), re.MULTILINE)
    }
    ours = {name: value for name, value in vars(protocol).items() if name.isupper() and not name.startswith("_")}

    assert numbers == ours


@settings(derandomize=True, deadline=None)
@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_cutting(sent: list[Frame], at: list[int]) -> None:
    data = b"".join(protocol.encode_frame(*frame) for frame in sent)
    decoder = FrameDecoder()

    received = [frame for piece in cut(data, at) for frame in decoder.feed(piece)]

    assert received == sent
    assert decoder.buffered == 0


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_frames_or_a_protocol_error_and_never_piles_up(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        list(decoder.feed(data))
    except ProtocolError:
        return
    assert decoder.buffered <= protocol.DATA_BYTES_MAX + protocol.FRAME_HEADER_BYTES


@pytest.mark.parametrize("decode", DECODERS)
@settings(derandomize=True, deadline=None)
@given(data=st.binary(max_size=80))
def test_every_decoder_gives_a_value_or_a_protocol_error(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert str(error)


segments = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


@settings(derandomize=True, deadline=None)
@given(st.lists(segments, min_size=1, max_size=5).map("/".join), st.integers(0, 2**63), st.booleans())
def test_an_entry_means_the_same_on_both_sides(path: str, size: int, executable: bool) -> None:
    entry = TreeEntry(path=path, kind=EntryKind.FILE, size_bytes=size, executable=executable)
    try:
        back = protocol.decode_entry(protocol.encode_entry(entry))
    except ProtocolError:
        assert protocol.path_mistake(path)
    else:
        assert back == entry


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", "../a", "a/../b", ".", "a\0b", "x/" * 129 + "x", "n" * 5000])
def test_paths_that_leave_a_tree_are_mistakes(path: str) -> None:
    assert protocol.path_mistake(path)


def entry(path: str, kind: EntryKind = EntryKind.FILE) -> TreeEntry:
    return TreeEntry(path=path, kind=kind, target="x" if kind is EntryKind.SYMLINK else "")


@pytest.mark.parametrize(
    "order",
    [
        [entry("a"), entry("a")],
        [entry("a", EntryKind.SYMLINK), entry("a/passwd")],
        [entry("a/b")],
        [entry("d", EntryKind.DIRECTORY), entry("e"), entry("d/x")],
        [entry(""), entry("a")],
    ],
)
def test_a_walk_that_passes_through_or_replaces_an_entry_is_refused(order: list[TreeEntry]) -> None:
    walk = _Order()

    assert any([walk.mistake(step) for step in order])


def test_an_honest_walk_is_accepted() -> None:
    walk = _Order()
    steps = [
        entry("d", EntryKind.DIRECTORY),
        entry("d/x"),
        entry("d/e", EntryKind.DIRECTORY),
        entry("d/e/y"),
        entry("z"),
    ]

    assert [walk.mistake(step) for step in steps] == [""] * 5
