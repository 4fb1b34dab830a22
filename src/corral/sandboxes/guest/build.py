"""Building a guest kit: from Debian's kernel package, or from a kernel that somebody else made.

Nothing of a package is run. The same package gives the same kit, byte for byte, and so the same digest.
"""

import hashlib
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from corral.kernel.errors import InvalidSpec, StoreUnavailable
from corral.sandboxes.guest.cpio import Entry, archive
from corral.sandboxes.guest.kernel_image import KERNEL_BYTES_MAX, elf_of, release_of
from corral.sandboxes.guest.kit import CURRENT, KERNEL, MANIFEST, MODULES, GuestKit, KitManifest, open_kit

Tell = Callable[[str], None]
PACKAGE: Final = "linux-image-cloud-amd64"
# what a machine of ours needs and a distribution's kernel has outside of itself; dependencies first
_ALWAYS: Final = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console", "squashfs")
_VSOCK: Final = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
_SIGNATURE: Final = b"~Module signature appended~\n"
_SIGNATURE_FIELDS: Final = 12
_DOWNLOAD_WITHIN_S: Final = 300.0
_MODULE_BYTES_MAX: Final = 16 * 1024**2


def build_from_package(package: Path, directory: Path, *, tell: Tell) -> GuestKit:
    """A kit from a Debian ``linux-image-*`` package. Raises InvalidSpec for a package that holds no such kernel."""
    tell(f"reading {package.name}")
    image, modules = b"", {}
    for path, content in deb_members(package):
        name = path.rpartition("/")[2]
        if path.startswith("boot/vmlinuz-"):
            image = content()
        elif (module := name.partition(".ko")[0]) in (*_ALWAYS, *_VSOCK) and ".ko" in name:
            modules[module] = _plain_module(name, content())
    if not image:
        raise InvalidSpec(f"{package} holds no boot/vmlinuz-…", cure=f"take the package that {PACKAGE} depends on")
    tell("decompressing the kernel")
    kernel = elf_of(image)
    source = package.name.removesuffix(".deb").replace("%3a", ":")
    return _keep(directory, kernel, modules, source=source, acpi=True, processors=True)


def build_from_kernel(
    kernel: Path, directory: Path, *, source: str, acpi: bool, processors: bool, tell: Tell
) -> GuestKit:
    """A kit from a kernel with everything built in that a machine of ours needs; see docs/howto/microvm.md."""
    tell(f"reading {kernel.name}")
    try:
        content = kernel.read_bytes()
    except OSError as error:
        raise InvalidSpec(f"the kernel {kernel} cannot be read: {error.strerror}") from error
    return _keep(directory, elf_of(content), {}, source=source, acpi=acpi, processors=processors)


def download_package(into: Path, *, tell: Tell) -> Path:
    """Debian's current cloud kernel. Raises: as ``debian_file``."""
    return debian_file(PACKAGE, into, prefix="linux-image-", tell=tell)


def debian_file(package: str, into: Path, *, prefix: str, tell: Tell) -> Path:
    """The package that ``package`` depends on, through apt and the mirrors and keys that this machine trusts.

    Raises InvalidSpec when this is no Debian; StoreUnavailable when apt cannot get it.
    """
    if shutil.which("apt-get") is None or shutil.which("apt-cache") is None:
        raise InvalidSpec(
            "this machine has no apt-get to get Debian's kernel with",
            cure=f"download the package that {package} depends on, and pass it with --package",
        )
    shown = _run(["apt-cache", "depends", package], cwd=into)
    name = next((line.split()[-1] for line in shown.splitlines() if f"Depends: {prefix}" in line), "")
    if not name:
        raise StoreUnavailable(f"apt knows no {package}", cure="apt-get update, or pass a package with --package")
    tell(f"downloading {name}")
    _run(["apt-get", "download", "-q", name], cwd=into)
    return next(into.glob(f"{name}_*.deb"))


def _run(command: list[str], *, cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_DOWNLOAD_WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StoreUnavailable(f"`{' '.join(command)}` did not end within {_DOWNLOAD_WITHIN_S:g} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise StoreUnavailable(f"`{' '.join(command)}` failed: {''.join(last)}", cure="pass a package with --package")
    return done.stdout


def deb_members(package: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Regular files of a .deb (deb(5): an ar archive with a tar archive in it), without leading ``./``."""
    try:
        data, name = _ar_member(package, b"data.tar")
        with tarfile.open(fileobj=io.BytesIO(_unpacked(name, data)), mode="r:") as tar:
            for member in tar:
                if member.isreg() and member.size <= KERNEL_BYTES_MAX:
                    file = tar.extractfile(member)
                    assert file is not None  # it is regular
                    yield member.name.removeprefix("./"), file.read
    except (tarfile.TarError, lzma.LZMAError, ValueError) as error:
        raise InvalidSpec(f"{package} is not a Debian package that can be read: {error}") from error
    except OSError as error:
        raise InvalidSpec(f"the package {package} cannot be read: {error.strerror}") from error


def _ar_member(package: Path, prefix: bytes) -> tuple[bytes, str]:
    content = package.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("it is no ar archive")
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].rstrip(b" /"), int(content[at + 48 : at + 58])
        if name.startswith(prefix):
            return content[at + 60 : at + 60 + size], name.decode()
        at += 60 + size + size % 2
    raise ValueError(f"it has no {prefix.decode()}")


def _unpacked(name: str, data: bytes) -> bytes:
    if name.endswith(".xz"):
        return lzma.decompress(data)
    if name.endswith(".zst"):
        import zstandard  # noqa: PLC0415 (only for packages that are packed so)

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _plain_module(name: str, content: bytes) -> bytes:
    """Decompressed and without its signature: no key of ours is in the kernel, and checking costs time."""
    module = _unpacked(name, content)
    if len(module) > _MODULE_BYTES_MAX:
        raise InvalidSpec(f"the kernel module {name} has {len(module)} bytes")
    if not module.endswith(_SIGNATURE):
        return module
    end = len(module) - len(_SIGNATURE)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: max(0, end - _SIGNATURE_FIELDS - length)]


def _keep(
    directory: Path, kernel: bytes, modules: Mapping[str, bytes], *, source: str, acpi: bool, processors: bool
) -> GuestKit:
    present = [name for name in (*_ALWAYS, *_VSOCK) if name in modules]
    order = "".join(f"vsock:{name}\n" if name in _VSOCK else f"{name}\n" for name in present)
    entries = [Entry(f"modules/{name}.ko", modules[name]) for name in present]
    packed = archive((Entry("modules"), Entry("modules/order", order.encode()), *entries)) if present else b""
    manifest = KitManifest(
        release=release_of(kernel),
        source=source,
        kernel=hashlib.sha256(kernel).hexdigest(),
        modules=hashlib.sha256(packed).hexdigest(),
        acpi=acpi,
        processors=processors,
    )
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        _publish(directory, manifest, {KERNEL: kernel, MODULES: packed})
    except OSError as error:
        raise InvalidSpec(f"the guest kit cannot be kept in {directory}: {error.strerror}") from error
    return open_kit(directory / manifest.digest[:16])


def _publish(directory: Path, manifest: KitManifest, files: Mapping[str, bytes]) -> None:
    """Complete from the moment in which it is there; then the one that is used."""
    place = directory / manifest.digest[:16]
    for leftover in directory.glob(".kit-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not place.exists():
        fresh = Path(tempfile.mkdtemp(prefix=".kit-", dir=directory))
        try:
            for name, content in files.items():
                (fresh / name).write_bytes(content)
            (fresh / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
            fresh.chmod(0o755)
            fresh.rename(place)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    link = directory / f".{CURRENT}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(directory / CURRENT)
