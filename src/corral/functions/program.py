"""What a program is, from its own section headers, before anybody compiles it.

A core module or a component (WebAssembly core specification 5.5; component-model, Binary.md) is a preamble of eight
bytes and sections, each with an id and a length. Only imports and exports are read, so a program of any size costs a
few kilobytes here. Whether its code is valid is for the engine to say.
"""

from dataclasses import dataclass
from typing import Final

from corral.blobs.ports import BlobReader
from corral.functions.model import Kind, RevisionSpec
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_MAGIC: Final = b"\0asm"
_MODULE: Final = b"\x01\0\0\0"
_COMPONENT: Final = b"\x0d\0\x01\0"
_IMPORTS, _EXPORTS, _COMPONENT_EXPORTS = 2, 7, 11
_SECTION_MAX: Final = 1024**2
_SECTIONS_MAX: Final = 10_000
_NAMES_MAX: Final = 10_000
_HEAD: Final = 6  # an id and a 32-bit length in LEB128
_WINDOW: Final = 64 * 1024
_HANDLER: Final = b"wasi:http/incoming-handler@"
_FUNCTION: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """``exports`` are functions of a core module; ``imports`` are the modules it imports from."""

    component: bool
    exports: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    http_handler: bool = False

    @property
    def kind(self) -> Kind:
        """How it is entered, as far as its exports tell."""
        if self.component:
            return Kind.HTTP_COMPONENT
        return Kind.WASI_COMMAND if "_start" in self.exports else Kind.REACTOR


class _Window:
    """Bytes of a blob, read in pieces of 64 KiB as they are needed."""

    def __init__(self, blobs: BlobReader, tenant: str, digest: Digest) -> None:
        self._blobs = blobs
        self._tenant = tenant
        self._digest = digest
        self._at = 0
        self._bytes = b""

    async def read(self, at: int, length: int) -> bytes:
        """``length`` bytes at ``at``; fewer at the end."""
        if not self._at <= at or at + length > self._at + len(self._bytes):
            wanted = max(length, _WINDOW)
            pieces = self._blobs.read(self._tenant, self._digest, offset=at, length=wanted)
            self._bytes, self._at = b"".join([piece async for piece in pieces]), at
        return self._bytes[at - self._at : at - self._at + length]


async def read_shape(blobs: BlobReader, tenant: str, digest: Digest) -> Shape:
    """Raises InvalidSpec when it is not Wasm, cut off, or has absurd headers; what ``BlobReader.read`` raises."""
    window, total = _Window(blobs, tenant, digest), digest.size_bytes
    preamble = await window.read(0, 8)
    if preamble[:4] != _MAGIC:
        raise _bad("this is not WebAssembly: it does not begin with \\0asm", "not-wasm")
    if preamble[4:] not in (_MODULE, _COMPONENT):
        raise _bad(f"this is WebAssembly of an unknown version, {preamble[4:].hex()}", "not-wasm")
    component = preamble[4:] == _COMPONENT
    at = 8
    exports: set[str] = set()
    imports: set[str] = set()
    handler = False
    for _ in range(_SECTIONS_MAX):
        if at >= total:
            return Shape(
                component=component, exports=frozenset(exports), imports=frozenset(imports), http_handler=handler
            )
        head = await window.read(at, _HEAD)
        length, used = _number(head, 1)
        begin, at = at + used, at + used + length
        if at > total:
            raise _bad(f"the program is cut off: a section ends at byte {at}, the file at {total}", "truncated")
        if component and head[0] == _COMPONENT_EXPORTS:
            handler = handler or _HANDLER in await _section(window, begin, length)
        elif not component and head[0] == _IMPORTS:
            imports |= _import_modules(await _section(window, begin, length))
        elif not component and head[0] == _EXPORTS:
            exports |= _exported_functions(await _section(window, begin, length))
    raise _bad(f"the program has more than {_SECTIONS_MAX} sections", "invalid-module")


def check_kind(shape: Shape, spec: RevisionSpec) -> None:
    """Raises InvalidSpec when the program is not of the kind that was asked for."""
    if shape.component is not (spec.kind is Kind.HTTP_COMPONENT):
        what, wanted = ("a component", "a core module") if shape.component else ("a core module", "a component")
        raise _bad(f"the program is {what}; {spec.kind.value} needs {wanted}", "wrong-kind")
    if spec.kind is Kind.HTTP_COMPONENT and not shape.http_handler:
        raise _bad("the component does not export wasi:http/incoming-handler", "no-entry")
    entry = {Kind.WASI_COMMAND: "_start", Kind.REACTOR: spec.handler}.get(spec.kind, "")
    if entry and entry not in shape.exports:
        known = ", ".join(sorted(shape.exports)[:10]) or "none"
        raise _bad(f'the program does not export the function "{entry}"; its exports are: {known}', "no-entry")


async def _section(window: _Window, begin: int, length: int) -> bytes:
    if length > _SECTION_MAX:
        raise _bad(f"the program's imports or exports take {length} bytes; the limit is {_SECTION_MAX}", "too-large")
    return await window.read(begin, length)


def _import_modules(section: bytes) -> set[str]:
    count, at = _number(section, 0)
    found: set[str] = set()
    for _ in range(min(count, _NAMES_MAX)):
        module, at = _name(section, at)
        _, at = _name(section, at)
        found.add(module)
        at = _after_import(section, at)
    return found


def _after_import(section: bytes, at: int) -> int:
    kind, at = _byte(section, at), at + 1
    if kind == 1:  # a table: its element type, then limits
        at += 1
    if kind in (1, 2):
        flags, at = _number(section, at)
        for _ in range(2 if flags & 1 else 1):
            _, at = _number(section, at)
        return at
    if kind == 3:  # a global: type and mutability
        return at + 2
    if kind == 4:  # a tag: attribute and type
        at += 1
    _, at = _number(section, at)
    return at


def _exported_functions(section: bytes) -> set[str]:
    count, at = _number(section, 0)
    found: set[str] = set()
    for _ in range(min(count, _NAMES_MAX)):
        name, at = _name(section, at)
        kind = _byte(section, at)
        _, at = _number(section, at + 1)
        if kind == _FUNCTION:
            found.add(name)
    return found


def _name(section: bytes, at: int) -> tuple[str, int]:
    length, at = _number(section, at)
    if at + length > len(section):
        raise _bad("a name in the program's imports or exports is longer than its section", "invalid-module")
    return section[at : at + length].decode("utf-8", errors="replace"), at + length


def _byte(section: bytes, at: int) -> int:
    if at >= len(section):
        raise _bad("the program's imports or exports end too early", "invalid-module")
    return section[at]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned 32-bit LEB128, and where it ends."""
    value = 0
    for place in range(5):
        byte = _byte(data, at + place)
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _bad("a number in the program has more than five bytes", "invalid-module")


def _bad(text: str, why: str) -> InvalidSpec:
    return InvalidSpec(text, field="module", why=why)
