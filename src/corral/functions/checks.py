"""What may be deployed: names, limits and wishes within bounds; every mistake is told at once."""

import re
from typing import Final

from corral.functions.model import Kind, Limits, Preopen, RevisionSpec, Scale
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_FUNCTION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_REVISION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OUTBOUND: Final = re.compile(r"(https?)://([a-z0-9.-]{1,253}|\[[0-9a-f:]{2,39}\])(:[0-9]{1,5})?")
_MIB: Final = 1024**2


def check_function_name(name: str) -> str:
    """``name``, or InvalidSpec. It is a DNS label, because host names are made of it."""
    if _FUNCTION_NAME.fullmatch(name) is None:
        raise InvalidSpec(
            f'function: "{name[:70]}" is not a name; use 1 to 63 of a-z, 0-9 and "-", not "-" at the ends',
            field="function",
        )
    return name


def check_revision_name(name: str) -> str:
    """``name``, or InvalidSpec."""
    if _REVISION_NAME.fullmatch(name) is None:
        raise InvalidSpec(
            f'revision: "{name[:70]}" is not a name; use 1 to 63 of a-z, 0-9, ".", "_" and "-", '
            "beginning and ending with a letter or digit",
            field="revision",
        )
    return name


def check_spec(spec: RevisionSpec) -> None:
    """Raises InvalidSpec whose ``mistakes`` are everything that is wrong."""
    mistakes = [*_program_mistakes(spec), *_limit_mistakes(spec.limits), *_world_mistakes(spec)]
    if mistakes:
        raise InvalidSpec("; ".join(mistakes[:3]), mistakes=tuple(mistakes))


def check_scale(scale: Scale) -> None:
    """Raises InvalidSpec whose ``mistakes`` are everything that is wrong."""
    mistakes = []
    if not 0 <= scale.min <= 1000:
        mistakes.append(f"scale.min: {scale.min} is not between 0 and 1000")
    if not 1 <= scale.max <= 1000:
        mistakes.append(f"scale.max: {scale.max} is not between 1 and 1000")
    if scale.min > scale.max:
        mistakes.append(f"scale.min: {scale.min} is more than scale.max, {scale.max}")
    if not 0.1 <= scale.target <= 10_000:
        mistakes.append(f"scale.target: {scale.target:g} is not between 0.1 and 10000 requests")
    if not 0 <= scale.idle_s <= 86_400:
        mistakes.append(f"scale.idle_s: {scale.idle_s:g} is not between 0 and 86400 seconds")
    if mistakes:
        raise InvalidSpec("; ".join(mistakes), mistakes=tuple(mistakes))


_RANGES: Final = {
    "memory_bytes": (65_536, 4 * 1024**3),
    "cpu_s": (0.001, 3600),
    "wall_s": (0.001, 3600),
    "fuel": (0, 2**62),
    "stack_bytes": (16 * 1024, 16 * _MIB),
    "table_elements": (0, 10_000_000),
    "core_instances": (1, 1000),
    "concurrency": (1, 1000),
    "queue": (0, 100_000),
    "queue_s": (0, 600),
    "requests_per_s": (0, 1_000_000),
    "body_bytes": (0, 64 * 1024**3),
    "response_bytes": (1, 64 * 1024**3),
    "log_bytes": (0, 64 * _MIB),
    "compile_s": (0.1, 600),
}


def _limit_mistakes(limits: Limits) -> list[str]:
    found = []
    for name, (low, high) in _RANGES.items():
        value = getattr(limits, name)
        if not low <= value <= high:
            found.append(f"limits.{name}: {value:g} is not between {low:g} and {high:g}")
    return found


def _program_mistakes(spec: RevisionSpec) -> list[str]:
    found = []
    try:
        Digest.parse(spec.module)
    except InvalidSpec as error:
        found.append(f"module: {error.message.removeprefix('digest: ')}")
    if len(spec.args) > 100 or any("\0" in each or len(each) > 4096 for each in spec.args):
        found.append("args: at most 100, each of at most 4096 characters, without zero bytes")
    if not 1 <= len(spec.handler) <= 128:
        found.append("handler: is the name of an export, of 1 to 128 characters")
    return found


def _world_mistakes(spec: RevisionSpec) -> list[str]:
    found = []
    if sum(len(name) + len(value) for name, value in spec.env.items()) > 65_536:
        found.append("env: more than 64 KiB")
    for name, value in spec.env.items():
        if _VARIABLE.fullmatch(name) is None or "\0" in value:
            found.append(f'env: "{name[:50]}" is not a variable of letters, digits and "_" without zero bytes')
    for preopen in spec.preopens:
        found += _preopen_mistakes(preopen)
    guests = [preopen.guest for preopen in spec.preopens]
    if len(guests) > 16 or len(set(guests)) < len(guests):
        found.append("preopens: at most 16, each at a path of its own")
    if spec.outbound and spec.kind is not Kind.HTTP_COMPONENT:
        found.append(f"outbound: a {spec.kind.value} has no way to call out; components for wasi:http do")
    if len(spec.outbound) > 100:
        found.append("outbound: more than 100 destinations")
    for destination in spec.outbound[:100]:
        if _OUTBOUND.fullmatch(destination) is None:
            found.append(f'outbound: "{destination[:100]}" is not http(s)://host[:port]')
    return found


def _preopen_mistakes(preopen: Preopen) -> list[str]:
    found = []
    parts = preopen.guest.split("/")[1:]
    plain = preopen.guest.startswith("/") and all(part not in ("", ".", "..") for part in parts)
    if not plain or "\0" in preopen.guest or len(preopen.guest) > 255:
        found.append(f'preopens: "{preopen.guest[:70]}" is not an absolute path without ".", ".." and trailing "/"')
    if bool(preopen.tree) is bool(preopen.volume):
        found.append(f"preopens: {preopen.guest[:70]} needs a tree or a volume, and not both")
    if preopen.tree and preopen.writable:
        found.append(f"preopens: {preopen.guest[:70]} is a tree, which cannot be writable")
    if preopen.tree:
        try:
            Digest.parse(preopen.tree)
        except InvalidSpec as error:
            found.append(f"preopens: {error.message}")
    return found
