"""The kernel inside a bzImage, as the ELF program that Firecracker and QEMU's direct boot start.

A bzImage (Documentation/arch/x86/boot.rst of Linux) is a loader with the compressed kernel behind it; its header says
where. Debian compresses with LZ4 (6.1), zstd (6.12) or xz (5.10); gzip is what ``make`` does by itself.
"""

import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from corral.kernel.errors import InvalidSpec

KERNEL_BYTES_MAX: Final = 512 * 1024**2
_ELF: Final = b"\x7fELF"
_MAGIC_AT: Final = 0x202
_SETUP_SECTORS_AT: Final = 0x1F1
_PAYLOAD_AT: Final = 0x248
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES: Final = 8 * 1024**2
_RELEASE: Final = re.compile(rb"Linux version (\S{1,64}) ")


def elf_of(image: bytes) -> bytes:
    """The ELF kernel in a bzImage, or ``image`` itself when it is one.

    Raises InvalidSpec when it is neither, or compressed in a way that is not known here.
    """
    if image.startswith(_ELF):
        return image
    payload = _payload(image)
    for magic, decompress in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            try:
                kernel = decompress(payload)
            except (ValueError, EOFError, OSError, RuntimeError, lzma.LZMAError, zlib.error, struct.error) as error:
                raise InvalidSpec(f"the kernel image cannot be decompressed: {error}") from error
            if not kernel.startswith(_ELF):
                raise InvalidSpec("what the kernel image holds is not an ELF kernel")
            return kernel
    raise InvalidSpec(f"the kernel image is compressed in an unknown way (it begins with {payload[:6].hex()})")


def release_of(kernel: bytes) -> str:
    """Such as ``6.1.0-56-cloud-amd64``, from the kernel's own banner; "" when it has none."""
    found = _RELEASE.search(kernel)
    return found[1].decode("ascii", "replace") if found else ""


def _payload(image: bytes) -> bytes:
    if len(image) < _PAYLOAD_AT + 8 or image[_MAGIC_AT : _MAGIC_AT + 4] != b"HdrS":
        raise InvalidSpec("the kernel image is neither a bzImage nor an ELF program")
    sectors = image[_SETUP_SECTORS_AT] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    begin = (sectors + 1) * 512 + offset
    if not 4 < length <= len(image) - begin:
        raise InvalidSpec("the kernel image is cut off")
    return image[begin : begin + length]


def _unlz4(payload: bytes) -> bytes:
    import lz4.block  # noqa: PLC0415 (a library of its own for the one moment in which a kit is built)

    return b"".join(
        lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK_BYTES) for block in _lz4_blocks(payload[4:])
    )


def _lz4_blocks(data: bytes) -> Iterator[bytes]:
    """Of the legacy frame; the last four bytes of a kernel's payload are its size."""
    at = 0
    while at + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        block = data[at + 4 : at + 4 + size]
        if len(block) < size:
            break  # the size behind the last block
        yield block
        at += 4 + size


def _unzstd(payload: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 (as above)

    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def _unxz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, KERNEL_BYTES_MAX)


def _ungzip(payload: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(payload, KERNEL_BYTES_MAX)


_DECOMPRESSORS: Final[Mapping[bytes, Callable[[bytes], bytes]]] = {
    _LZ4_LEGACY: _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd,
    b"\xfd7zXZ\x00": _unxz,
    b"\x1f\x8b": _ungzip,
}
