"""Secrets never reach a log, however their bytes are cut, overlap or mix."""

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.tasks.masking import MASK, Masker

LETTERS = st.binary(min_size=1, max_size=6).map(lambda raw: bytes(b"abc"[byte % 3] for byte in raw))
PIECES = st.lists(st.binary(max_size=12).map(lambda raw: bytes(b"abcx"[byte % 4] for byte in raw)), max_size=12)


def masked(secrets: list[bytes], pieces: list[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join(masker.feed(piece) for piece in pieces) + masker.finish()


@given(st.lists(LETTERS, min_size=1, max_size=4), PIECES)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_no_part_of_the_output_between_masks_holds_a_secret(secrets: list[bytes], pieces: list[bytes]) -> None:
    shown = masked(secrets, pieces)

    assert not any(secret in part for part in shown.split(MASK) for secret in secrets)


@given(st.lists(LETTERS, min_size=1, max_size=4), PIECES)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_how_the_bytes_are_cut_changes_nothing(secrets: list[bytes], pieces: list[bytes]) -> None:
    assert masked(secrets, pieces) == masked(secrets, [b"".join(pieces)])


@given(st.lists(LETTERS, min_size=1, max_size=4), PIECES)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_bytes_without_a_secret_pass_unchanged(secrets: list[bytes], pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    for secret in secrets:
        text = text.replace(secret, b"-" * len(secret))
    if any(secret in text for secret in secrets):
        return

    assert masked(secrets, [text[at : at + 3] for at in range(0, len(text), 3)]) == text


@given(LETTERS, PIECES)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_less_than_one_secret_is_held_back(secret: bytes, pieces: list[bytes]) -> None:
    masker = Masker([secret])
    fed = shown = masks = 0
    for piece in pieces:
        out = masker.feed(piece)
        fed += len(piece)
        masks += out.count(MASK)
        shown += len(out.replace(MASK, b""))
        if masks == 0:
            assert fed - shown < len(secret)
