"""Root images, guest kits and snapshots where things go wrong: no space, makers that were killed, many at once."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.guest.build import build_from_kernel
from corral.sandboxes.guest.root_image import FILE, RootImages
from corral.sandboxes.model import MIB, Size
from corral.sandboxes.runtimes.snapshots import Note, Snapshots
from corral.testing.machines import why_no_machines


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root of eight megabytes that nothing makes smaller."""
    if why := why_no_machines():
        pytest.skip(why)
    (tmp_path / "root" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "bin" / "program").write_bytes(os.urandom(8 * MIB))
    return tmp_path / "root"


async def test_the_same_root_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first = await RootImages(tmp_path / "one").image(str(root))
    second = await RootImages(tmp_path / "two").image(str(root))

    assert first.read_bytes() == second.read_bytes()


async def test_many_who_ask_at_once_share_one_image(root: Path, tmp_path: Path) -> None:
    made: list[str] = []
    workers = [RootImages(tmp_path / "disks") for _ in range(3)]

    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(images.image(str(root), on_start=lambda: made.append("made"))) for images in workers * 3
        ]

    assert len({task.result() for task in asked}) == 1
    assert made == ["made"]


async def test_what_a_killed_maker_left_goes_with_the_next_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "image.json").touch()  # the root is a prepared image's: its disk lies beside it
    leftover = tmp_path / f".{FILE}.half"
    leftover.write_bytes(b"half")

    place = await RootImages(tmp_path / "disks").image(str(root))

    assert place == tmp_path / FILE
    assert not leftover.exists()


async def test_a_disk_without_space_is_told_and_nothing_of_an_image_is_left(root: Path, small: Path) -> None:
    with pytest.raises(SandboxFailed, match=r"(?i)no space left"):
        await RootImages(small / "disks").image(str(root))

    assert list((small / "disks").iterdir()) == []


def test_a_disk_without_space_keeps_no_half_of_a_kit(small: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + b"Linux version 6.1.0-1-test (someone)" + bytes(8 * MIB))

    with pytest.raises(InvalidSpec, match="No space left"):
        build_from_kernel(kernel, small / "kits", source="test", acpi=True, processors=True, tell=lambda _: None)

    assert list((small / "kits").iterdir()) == []


def test_a_disk_without_space_keeps_no_half_of_a_snapshot(small: Path, tmp_path: Path) -> None:
    snapshots = Snapshots(small / "snapshots", bytes_max=64 * MIB)
    memory = tmp_path / "memory"
    memory.write_bytes(os.urandom(8 * MIB))
    note = Note(made_by="test", tenant="ann", root="", size=Size(), id="sbx_1")

    with pytest.raises(SandboxFailed, match=r"cannot be kept: .*No space left"):
        snapshots.keep(note, {"memory": memory})

    assert list((small / "snapshots").iterdir()) == []


def test_a_snapshot_comes_from_another_disk_too_but_never_through_a_link(small: Path, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots", bytes_max=64 * MIB)
    note = Note(made_by="test", tenant="ann", root="", size=Size(), id="sbx_1")
    (small / "memory").write_bytes(b"of ann")
    (small / "link").symlink_to("/etc/hostname")

    kept = snapshots.find(snapshots.keep(note, {"memory": small / "memory"}))

    assert kept.files["memory"].read_bytes() == b"of ann"
    assert not (small / "memory").exists()
    with pytest.raises(SandboxFailed):
        snapshots.keep(note, {"memory": small / "link"})
