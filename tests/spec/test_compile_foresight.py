"""When contents travel with the question, and when they wait to be asked for."""

from pathlib import Path

from corral.compile.remote.foresight import Foresight, Guess
from corral.compile.remote.model import Shipment
from corral.kernel.digest import Digest


def _shipment(folder: Path, *texts: str) -> Shipment:
    files = {}
    for text in texts:
        path = folder / f"{abs(hash(text))}.c"
        path.write_text(text)
        files[Digest.of(text.encode())] = str(path)
    return Shipment(
        action=Digest.of(b"a"), messages=(), files=files, contents={}, compiler="", identity="", tool_files=()
    )


def _after(folder: Path, misses: int) -> Foresight:
    foresight = Foresight()
    for number in range(misses):
        assert foresight.guess(_shipment(folder, f"{number}"), now_s=100.0) == Guess()
        foresight.ended(_shipment(folder, f"{number}"), hit=False, now_s=100.0)
    return foresight


def test_a_build_begins_with_asking_and_sends_along_after_a_row_of_misses(tmp_path: Path) -> None:
    foresight = _after(tmp_path, 8)

    assert foresight.guess(_shipment(tmp_path, "new", "1"), now_s=100.0) == Guess((b"new",), ask=False)


def test_a_hit_or_a_pause_makes_it_ask_again(tmp_path: Path) -> None:
    hit, paused = _after(tmp_path, 8), _after(tmp_path, 8)
    hit.ended(_shipment(tmp_path, "x"), hit=True, now_s=100.0)

    assert hit.guess(_shipment(tmp_path, "new"), now_s=100.0) == Guess()
    assert paused.guess(_shipment(tmp_path, "new"), now_s=110.0) == Guess()


def test_now_and_then_the_cache_is_asked_all_the_same(tmp_path: Path) -> None:
    foresight = _after(tmp_path, 8)

    guesses = [foresight.guess(_shipment(tmp_path, f"n{each}"), now_s=100.0) for each in range(32)]

    assert all(each.contents for each in guesses)
    assert [each.ask for each in guesses].count(True) == 2


def test_what_was_sent_before_is_asked_for(tmp_path: Path) -> None:
    foresight = _after(tmp_path, 8)

    assert foresight.guess(_shipment(tmp_path, "1", "2"), now_s=100.0) == Guess()


def test_nothing_large_and_nothing_that_changed_goes_along(tmp_path: Path) -> None:
    foresight = _after(tmp_path, 8)
    changed = _shipment(tmp_path, "old")
    Path(next(iter(changed.files.values()))).write_text("new")

    assert foresight.guess(_shipment(tmp_path, "x" * 100_000), now_s=100.0) == Guess()
    assert foresight.guess(changed, now_s=100.0) == Guess()
