"""Preparing an image of 350 MB from a registry, as a directory and as the disk of a machine, against the bare tools."""

import asyncio
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.report import Row, at_most
from corral.images.adapters.sources import resolve
from corral.images.model import ImagesConfig
from corral.images.service import Images
from corral.kernel.clock import SystemClock
from corral.sandboxes.guest.root_image import RootImages
from corral.testing.images import build, debian_registry, this_platform

_IMAGE_BYTES = 350_000_000
_ROUNDS = 2
_SECOND_USES = 20
_SOURCES = ("/usr/bin", "/usr/lib", "/usr/share", "/usr/include")
_TOOLS = ("skopeo", "umoci", "sqfstar", "mksquashfs", "docker-registry")


def measure() -> Sequence[Row]:
    """The rows; none, and a word why, where a tool is missing."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        print(f"images: {', '.join(missing)} missing: no figures", file=sys.stderr)
        return ()
    with tempfile.TemporaryDirectory(prefix="bench-images-", dir="/var/tmp") as folder:
        work = Path(folder)
        (work / "registry").mkdir()
        with debian_registry(work / "registry") as registry:
            image = build(_layer(work / "layer.tar"), architecture=this_platform().architecture)
            reference = registry.push("bench", image)
            del image
            return list(_rows(work, reference))


def _rows(work: Path, reference: str) -> Iterator[Row]:
    bare: dict[str, list[float]] = {"skopeo": [], "umoci": [], "sqfstar": []}
    ours: dict[str, list[float]] = {"directory": [], "disk": []}
    for number in range(_ROUNDS):
        there = work / f"bare-{number}"
        there.mkdir()
        for tool, seconds in _bare(there, reference).items():
            bare[tool].append(seconds)
        shutil.rmtree(there)
        mine = work / f"ours-{number}"
        for kind, seconds in asyncio.run(_ours(mine, reference)).items():
            ours[kind].append(seconds)
        shutil.rmtree(mine)
    copied = min(bare["skopeo"])
    directory_s, disk_s = min(ours["directory"]), min(ours["directory"]) + min(ours["disk"])
    yield at_most(
        "350 MB image to a directory", directory_s, "skopeo copy + umoci unpack", copied + min(bare["umoci"]), times=1.2
    )
    yield at_most(
        "350 MB image to a machine's disk", disk_s, "skopeo copy + sqfstar", copied + min(bare["sqfstar"]), times=1.2
    )
    second_s = asyncio.run(_second_use(work / "second", reference))
    yield at_most("a second tenant's use of a prepared image", second_s, "bound", 0.02)


def _layer(path: Path) -> bytes:
    """Files of this machine, in the order of their names, until there are enough."""
    total = 0
    with tarfile.open(path, "w") as tar:
        for source in _SOURCES:
            for file in sorted(Path(source).rglob("*")):
                if file.is_symlink() or not file.is_file() or file.stat().st_size > 60_000_000:
                    continue
                total += file.stat().st_size
                if total > _IMAGE_BYTES:
                    break
                tar.add(file, arcname=str(file).lstrip("/"), recursive=False)
    content = path.read_bytes()
    path.unlink()
    return content


def _bare(there: Path, reference: str) -> dict[str, float]:
    layout = there / "layout"
    copied = _timed(["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:x"])
    unpacked = _timed(["umoci", "--log=error", "unpack", "--image", f"{layout}:x", str(there / "bundle")])
    layer = max((layout / "blobs/sha256").iterdir(), key=lambda file: file.stat().st_size)
    packed = _timed(["sh", "-c", f"zcat {layer} | sqfstar -quiet -no-progress -comp lz4 {there}/root.squashfs"])
    return {"skopeo": copied, "umoci": unpacked, "sqfstar": packed}


def _timed(command: list[str]) -> float:
    began_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return time.perf_counter() - began_s


async def _ours(directory: Path, reference: str) -> dict[str, float]:
    async with _images(directory) as images:
        began_s = time.perf_counter()
        lease = await images.lease(reference)
        directory_s = time.perf_counter() - began_s
        disks = RootImages(directory / "disks")
        began_s = time.perf_counter()
        await disks.image(lease.image.root)
        disk_s = time.perf_counter() - began_s
        lease.release_nowait()
        return {"directory": directory_s, "disk": disk_s}


async def _second_use(directory: Path, reference: str) -> float:
    async with _images(directory) as images:
        (await images.lease(reference)).release_nowait()
        samples = []
        for number in range(_SECOND_USES):
            began_s = time.perf_counter()
            lease = await images.lease(reference, secret=f"tenant-{number}:password")
            samples.append(time.perf_counter() - began_s)
            lease.release_nowait()
        return sorted(samples)[len(samples) // 2]


def _images(directory: Path) -> Images:
    return Images(ImagesConfig(), directory, clock=SystemClock(), platform=this_platform(), resolve=resolve)
