"""The store of results: whole or absent, cleaned by last use, indifferent to what others left there."""

import os
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest

from corral.compile.entries import ResultEntry
from corral.compile.limits import CompileConfig
from corral.compile.model import IncludeSet, OutputFile, Result
from corral.compile.place import clone, new_file
from corral.compile.store import ResultStore
from corral.kernel.errors import InvalidSpec, StoreUnavailable

NOW_S = 1_800_000_000.0


def key_of(number: int) -> str:
    return blake3.blake3(str(number).encode()).hexdigest()


def put(store: ResultStore, number: int, data: bytes = b"object", request: int = 0) -> str:
    result = Result(files=(OutputFile(role="object", digest=blake3.blake3(data).hexdigest(), size_bytes=len(data)),))
    included = IncludeSet(files=(("a.c", key_of(number)),))
    store.put(key_of(1000 + request), key_of(number), included, result, {"object": data})
    return key_of(number)


def found(store: ResultStore, key: str) -> ResultEntry | None:
    return store.result(key, now_s=NOW_S)


def as_they_are(rules: bytes) -> bytes:
    return rules


@pytest.mark.parametrize("level", [0, 1])
def test_what_is_stored_comes_out_again(tmp_path: Path, level: int) -> None:
    store = ResultStore(tmp_path / "store", CompileConfig(compression_level=level))
    for data in (b"", b"x", os.urandom(300_000)):
        key = put(store, len(data), data)
        entry = found(store, key)
        assert entry is not None
        target = tmp_path / "out.o"

        store.place(entry, {"object": str(target)}, umask=0o077, rules=as_they_are)

        assert target.read_bytes() == data == store.content(entry, "object")
        assert target.stat().st_mode & 0o777 == 0o600


def test_an_entry_that_is_damaged_anywhere_is_absent(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig())
    key = put(store, 1)
    (file,) = (tmp_path / "v1" / "results").glob("*/*")
    whole = file.read_bytes()

    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes((whole[place] ^ 0xFF,)) + whole[place + 1 :])
        assert found(store, key) is None, place
        file.parent.mkdir(exist_ok=True)
    file.write_bytes(whole)

    assert found(store, key) is not None


def test_an_entry_under_a_wrong_name_is_absent(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig())
    put(store, 1)
    (file,) = (tmp_path / "v1" / "results").glob("*/*")
    other = tmp_path / "v1" / "results" / key_of(2)[0] / key_of(2)
    other.parent.mkdir(exist_ok=True)
    file.rename(other)

    assert found(store, key_of(2)) is None


def test_cleaning_removes_what_was_used_longest_ago_and_a_hit_is_a_use(tmp_path: Path) -> None:
    """Not the time of writing: what is read stays, although it is the oldest."""
    store = ResultStore(tmp_path, CompileConfig(compression_level=1))
    keys = [put(store, number, os.urandom(40_000), request=number) for number in range(4)]
    for age, key in enumerate(reversed(keys)):
        (file,) = (tmp_path / "v1" / "results").glob(f"*/{key}")
        os.utime(file, (NOW_S - 10_000 * (age + 1),) * 2)
    for file in (tmp_path / "v1" / "sets").glob("*/*"):
        os.utime(file, (NOW_S, NOW_S))

    assert found(store, keys[0]) is not None
    report = store.clean(now_s=NOW_S, to_bytes=110_000, age_s=None)

    assert [number for number, key in enumerate(keys) if found(store, key)] == [0, 3]
    assert report.removed == 2
    assert report.used_bytes == store.scan().used_bytes


def test_cleaning_by_age(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig())
    keys = [put(store, number) for number in range(2)]
    for file in (tmp_path / "v1").glob(f"*/*/{keys[0]}"):
        os.utime(file, (NOW_S - 100, NOW_S - 100))
    for file in (tmp_path / "v1" / "sets").glob("*/*"):
        os.utime(file, (NOW_S, NOW_S))
    (other,) = (tmp_path / "v1" / "results").glob(f"*/{keys[1]}")
    os.utime(other, (NOW_S + 5000, NOW_S + 5000))  # the clock was set back: an entry of the future counts as new

    store.clean(now_s=NOW_S, to_bytes=None, age_s=50)

    assert [found(store, key) is not None for key in keys] == [False, True]


def test_what_nobody_used_for_too_long_goes_although_there_is_room(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig(store_age_s=50))
    keys = [put(store, number, request=number) for number in range(2)]
    for file in (tmp_path / "v1").glob("*/*/*"):
        os.utime(file, (NOW_S - 40, NOW_S - 40))
    for file in (tmp_path / "v1").glob(f"*/*/{keys[0]}"):
        os.utime(file, (NOW_S - 60, NOW_S - 60))

    report = store.clean_old(now_s=NOW_S)

    assert [found(store, key) is not None for key in keys] == [False, True]
    assert report.used_bytes == store.used_bytes > 0


def test_a_store_that_outgrows_its_limit_is_cleaned_to_nine_tenths(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig(store_bytes=200_000))
    for number in range(5):
        put(store, number, os.urandom(50_000), request=number)
    assert store.used_bytes > 200_000

    report = store.clean_if_over(now_s=NOW_S)

    assert report is not None
    assert report.used_bytes <= 180_000
    assert store.clean_if_over(now_s=NOW_S) is None


def test_at_most_so_many_include_sets_are_remembered_the_latest_first(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig(include_sets=3))

    for number in (1, 2, 3, 4, 2):
        put(store, number)

    assert [key for _, key in store.sets(key_of(1000))] == [key_of(number) for number in (2, 4, 3)]


def test_what_a_killed_owner_left_half_written_is_swept(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig())
    key = put(store, 1)
    (tmp_path / "v1" / "new" / "123-4").write_bytes(b"half")

    store.sweep()

    assert not list((tmp_path / "v1" / "new").iterdir())
    assert found(store, key) is not None


def test_wiping_leaves_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, CompileConfig(compression_level=0))
    key = put(store, 1)

    store.wipe()

    assert found(store, key) is None
    assert store.scan().entries == 0


def test_a_store_that_cannot_be_written_says_so_and_counts(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "store", CompileConfig())
    for section in ("results", "new"):
        place = tmp_path / "store" / "v1" / section
        place.rmdir()
        place.write_text("a file where a directory should be")

    with pytest.raises(StoreUnavailable, match="compile store"):
        put(store, 1)

    assert store.unwritten == 1
    with pytest.raises(StoreUnavailable):
        ResultStore(tmp_path / "store", CompileConfig())


def test_a_new_file_replaces_the_name_and_not_the_content(tmp_path: Path) -> None:
    target, kept = tmp_path / "a.o", tmp_path / "b.o"
    target.write_bytes(b"before")
    kept.hardlink_to(target)

    new_file(str(target), b"after", mode=0o640)

    assert (target.read_bytes(), kept.read_bytes()) == (b"after", b"before")
    assert sorted(os.listdir(tmp_path)) == ["a.o", "b.o"]


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.o").mkdir()

    writes: tuple[Callable[[], None], ...] = (
        lambda: new_file(str(tmp_path / "a.o"), b"data", mode=0o644),
        lambda: clone(__file__, str(tmp_path / "a.o"), mode=0o644),
        lambda: clone(__file__, str(tmp_path / "none" / "a.o"), mode=0o644),
    )
    for write in writes:
        with pytest.raises(OSError, match="directory"):
            write()

    assert os.listdir(tmp_path) == ["a.o"]


def test_a_clone_has_the_content_and_its_own_mode(tmp_path: Path) -> None:
    source = tmp_path / "stored"
    source.write_bytes(os.urandom(200_000))
    source.chmod(0o600)

    clone(str(source), str(tmp_path / "a.o"), mode=0o644)

    assert (tmp_path / "a.o").read_bytes() == source.read_bytes()
    assert (tmp_path / "a.o").stat().st_mode & 0o777 == 0o644


def test_hard_links_of_compressed_files_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="compression_level = 0"):
        CompileConfig(hard_links=True)
