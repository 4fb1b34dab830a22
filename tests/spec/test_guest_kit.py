"""Guest kits: the same package gives the same kit; what is no kernel is refused; nothing of a package is run."""

import gzip
import io
import lzma
import struct
import subprocess
import tarfile
from pathlib import Path

import lz4.block
import pytest
import zstandard

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.guest.build import build_from_kernel, build_from_package
from corral.sandboxes.guest.cpio import Entry, archive
from corral.sandboxes.guest.greeting import ENTROPY_BYTES, HELLO, Go
from corral.sandboxes.guest.kernel_image import elf_of, release_of
from corral.sandboxes.guest.kit import open_kit, verify
from corral.sandboxes.guest.machine import (
    Accelerator,
    Descriptors,
    MachineShape,
    Stage,
    arguments,
    kernel_words,
    processors_for,
)
from corral.testing.processes import why_no_agent

KERNEL = b"\x7fELF" + b"Linux version 6.1.0-1-test (someone)" + bytes(8_500_000)
GUEST = Path(__file__).parents[2] / "native" / "guest" / "guest.h"
QUIET = lambda _: None  # noqa: E731


def lz4_legacy(data: bytes) -> bytes:
    step = 8 * 1024 * 1024
    blocks = [lz4.block.compress(data[at : at + step], store_size=False) for at in range(0, len(data), step)]
    framed = b"".join(struct.pack("<I", len(block)) + block for block in blocks)
    return b"\x02\x21\x4c\x18" + framed + struct.pack("<I", len(data))


def bz_image(payload: bytes) -> bytes:
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


def deb(**files: bytes) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as data:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            data.addfile(info, io.BytesIO(content))
    members = ((b"debian-binary", b"2.0\n"), (b"data.tar.xz", tar.getvalue()))
    packed = b"!<arch>\n"
    for member, content in members:
        head = b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (member, 0, 0, 0, 0o644, len(content))
        packed += head + content + b"\n" * (len(content) % 2)
    return packed


@pytest.mark.parametrize(
    "payload",
    [
        lz4_legacy(KERNEL),
        zstandard.ZstdCompressor(level=1).compress(KERNEL),
        lzma.compress(KERNEL, preset=0),
        gzip.compress(KERNEL, 1),
    ],
    ids=["lz4", "zstd", "xz", "gzip"],
)
def test_a_kernel_is_found_in_its_image_however_it_is_packed(payload: bytes) -> None:
    found = elf_of(bz_image(payload))

    assert found == KERNEL
    assert release_of(found) == "6.1.0-1-test"


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"MZ" * 2000, "neither a bzImage nor an ELF"),
        (bz_image(b"")[:1024], "cut off"),
        (bz_image(b"\x89unknown packing"), "compressed in an unknown way"),
        (bz_image(gzip.compress(b"no kernel at all")), "not an ELF kernel"),
        (bz_image(lz4_legacy(KERNEL)[:2000]), "cannot be decompressed|not an ELF"),
        (bz_image(b"\x1f\x8b" + b"\xff" * 100), "cannot be decompressed"),
    ],
)
def test_what_is_no_kernel_is_refused_in_one_sentence(image: bytes, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        elf_of(image)


def test_a_package_gives_the_same_kit_every_time(tmp_path: Path) -> None:
    if why := why_no_agent():
        pytest.skip(why)
    signature = bytes(8) + (300).to_bytes(4, "big")
    signed = b"the module" + bytes(300) + signature + b"~Module signature appended~\n"
    package = tmp_path / "linux-image-6.1.0-1-test_1_amd64.deb"
    folder = "lib/modules/6.1.0-1-test/kernel"
    package.write_bytes(
        deb(
            **{
                "boot/vmlinuz-6.1.0-1-test": bz_image(lz4_legacy(KERNEL)),
                f"{folder}/virtio.ko": signed,
                f"{folder}/squashfs.ko.xz": lzma.compress(b"packed module"),
                f"{folder}/vsock.ko": b"for firecracker",
                f"{folder}/nouveau.ko": b"for nobody here",
            }
        )
    )

    one = build_from_package(package, tmp_path / "one", tell=QUIET)
    other = build_from_package(package, tmp_path / "other", tell=QUIET)
    modules = (one.directory / "modules.cpio").read_bytes()

    assert (one.manifest, one.digest) == (other.manifest, other.digest)
    assert one.initrd.read_bytes() == other.initrd.read_bytes()
    assert open_kit(tmp_path / "one").directory == one.directory
    assert one.manifest.release == "6.1.0-1-test"
    assert b"virtio\nsquashfs\nvsock:vsock\n" in modules
    assert b"packed module" in modules
    assert b"the module" in modules
    assert b"Module signature" not in modules
    assert b"for nobody here" not in modules
    verify(one)


def test_a_package_without_a_kernel_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "hello.deb"
    package.write_bytes(deb(**{"usr/bin/hello": b"hello"}))

    with pytest.raises(InvalidSpec, match="holds no boot/vmlinuz"):
        build_from_package(package, tmp_path / "kits", tell=QUIET)
    package.write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(InvalidSpec, match="not a Debian package that can be read"):
        build_from_package(package, tmp_path / "kits", tell=QUIET)
    with pytest.raises(InvalidSpec, match=r"absent\.deb cannot be read: No such file or directory"):
        build_from_package(tmp_path / "absent.deb", tmp_path / "kits", tell=QUIET)
    assert not (tmp_path / "kits").exists()


def test_a_kit_that_changed_on_disk_is_told_by_the_file(tmp_path: Path) -> None:
    if why := why_no_agent():
        pytest.skip(why)
    (tmp_path / "vmlinux").write_bytes(KERNEL)
    kit = build_from_kernel(
        tmp_path / "vmlinux", tmp_path / "kits", source="mine", acpi=False, processors=False, tell=QUIET
    )
    kit.kernel.write_bytes(KERNEL[:-1])

    with pytest.raises(SandboxFailed, match="vmlinux is not what the manifest"):
        verify(kit)
    with pytest.raises(SandboxFailed, match="there is no guest kit in") as caught:
        open_kit(tmp_path / "elsewhere")
    assert caught.value.cure == "corral vm build-kit"


def test_an_initramfs_is_read_by_other_peoples_cpio(tmp_path: Path) -> None:
    packed = archive((Entry("dev"), Entry("init", b"#!" * 5, executable=True), Entry("dev/empty", b"")))
    listed = subprocess.run(["python3", "-c", _LIST], input=packed, capture_output=True, check=True, timeout=30).stdout

    assert listed.decode().split() == ["dev", "0o40755", "init", "0o100755", "dev/empty", "0o100644"]
    assert len(packed) % 512 == 0


_LIST = """
import sys
data, at = sys.stdin.buffer.read(), 0
while True:
    assert data[at:at + 6] == b"070701"
    fields = [int(data[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
    name = data[at + 110:at + 110 + fields[11] - 1].decode()
    if name == "TRAILER!!!":
        break
    print(name, oct(fields[1]))
    at += (110 + fields[11] + 3) // 4 * 4
    at += (fields[6] + 3) // 4 * 4
"""


def test_the_host_and_the_guest_agree_on_the_greeting() -> None:
    header = GUEST.read_text()
    go = Go(unix_s=1.5, entropy=b"e" * ENTROPY_BYTES, host_name="n" * 80, memory_bytes=7, processes=9).encode()

    assert f'#define HELLO "{HELLO.decode()[:-1]}\\n"' in header
    assert f"#define ENTROPY_BYTES {ENTROPY_BYTES}\n" in header
    assert len(go) == 8 + 8 + 8 + 4 + 4 + ENTROPY_BYTES + 64
    assert go.startswith(b"corralgo" + struct.pack("<QQII", 1_500_000_000, 7, 9, 0))
    assert go.endswith(b"n" * 63 + b"\0")


def shape(**changed: object) -> MachineShape:
    fields: dict[str, object] = {
        "qemu": "qemu 7",
        "accelerator": Accelerator.TCG,
        "kit": "k",
        "root": "r",
        "memory_bytes": 256 * 1024**2,
        "processors": 1,
        "counter_khz": 2_400_000,
        "acpi": True,
    }
    return MachineShape(**(fields | changed))  # type: ignore[arg-type]


def test_a_template_is_named_by_everything_that_its_state_depends_on() -> None:
    others = (
        shape(qemu="qemu 8"),
        shape(accelerator=Accelerator.KVM),
        shape(kit="other"),
        shape(root="other"),
        shape(memory_bytes=257 * 1024**2),
        shape(processors=2),
        shape(counter_khz=2_400_001),
        shape(acpi=False),
        shape(loud=True),
    )

    assert len({shape().key, *(other.key for other in others)}) == len(others) + 1
    assert shape().key == shape().key


def test_a_machine_has_no_network_and_a_read_only_disk() -> None:
    at = Descriptors(stream=3, kernel=6, initrd=7, root=8, console=9, monitor=10, memory=11)

    template = arguments("qemu", shape(), Stage.TEMPLATE, at)
    clone = arguments("qemu", shape(), Stage.CLONE, at)

    assert "read-only=on" in " ".join(clone)
    assert not {"-netdev", "-nic", "-net"} & set(clone)
    assert not any("net" in word.partition(",")[0] for word in clone if word.startswith("virtio"))
    assert "-nodefaults" in clone
    assert clone[clone.index("-sandbox") + 1].startswith("on,")
    assert [word.replace("share=off", "share=on") for word in clone[:-2]] == template  # or the state would not fit
    assert clone[-2:] == ["-incoming", "defer"]


def test_an_emulated_machine_is_told_its_clock_and_gets_one_processor() -> None:
    assert "tsc_early_khz=2400000" in kernel_words(shape())
    assert "tsc_early_khz" not in kernel_words(shape(accelerator=Accelerator.KVM))
    assert "mitigations=off" not in kernel_words(shape(accelerator=Accelerator.KVM))
    assert [processors_for(cpus, Accelerator.KVM, many=True) for cpus in (0.5, 1.0, 2.5, 99)] == [1, 1, 3, 32]
    assert processors_for(4, Accelerator.KVM, many=False) == 1
    assert processors_for(4, Accelerator.TCG, many=True) == 1
