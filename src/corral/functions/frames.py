"""The frames between a front, a worker and the native host, as pure functions; see docs/reference/functions-abi.md.

A frame is a head of 12 bytes (payload size, kind, flags, stream; little-endian) and its payload. A *stream* is one call
on one connection; its number is chosen by the front and used once.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

HEAD: Final = struct.Struct("<IBBHI")
PAYLOAD_MAX: Final = 512 * 1024
WINDOW: Final = 256 * 1024
"""Bytes of a body, or of an answer, that may be on their way; more only after a CREDIT."""

CALL, BODY, CANCEL, CREDIT, OUT, END = 1, 2, 3, 4, 5, 6
LOAD, UNLOAD, LOADED, STATS, LOG = 16, 17, 18, 20, 21
LAST: Final = 1
"""The flag of a stream's last frame in one direction."""

_END: Final = struct.Struct("<B3xI4Q")
_STATS: Final = struct.Struct("<12Q")
_LIMITS: Final = struct.Struct("<BB6Q")
_U32: Final = struct.Struct("<I")
_TWO: Final = struct.Struct("<II")


class Outcome(IntEnum):
    """How a call ended."""

    OK = 0
    EXIT = 1
    TRAP = 2
    WALL = 3
    CPU = 4
    FUEL = 5
    MEMORY = 6
    STACK = 7
    OUTPUT = 8
    CANCELED = 9
    UNKNOWN = 10
    BUSY = 11
    BROKEN = 12


NOT_BEGUN: Final = frozenset({Outcome.UNKNOWN, Outcome.BUSY})
"""The program did not see the request: it may be sent elsewhere, whatever its method."""


class Ended(msgspec.Struct, frozen=True):
    """The end of a call; times in nanoseconds."""

    outcome: Outcome
    status: int
    cpu_ns: int
    wall_ns: int
    memory_bytes: int
    instantiate_ns: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """What one instance did since it was loaded; times in nanoseconds."""

    requests: int
    errors: int
    traps: int
    timeouts: int
    refused: int
    in_flight: int
    cpu_ns: int
    wall_ns: int
    instantiate_ns: int
    memory_peak: int
    latency_p50_ns: int
    latency_p99_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What LOAD carries beside descriptors: the compiled code first, then one directory for each pre-open.

    Attributes:
        key: of the instance; ``code`` is shared by the instances that name it.
        reactor: enter through ``handler`` instead of ``_start``.
        preopens: guest path and whether it is writable, in the order of the descriptors.
    """

    key: str
    code: str
    reactor: bool
    handler: str
    memory_bytes: int
    table_elements: int
    fuel: int
    response_bytes: int
    log_bytes: int
    cpu_ns: int
    args: Sequence[str]
    env: Mapping[str, str]
    preopens: Sequence[tuple[str, bool]] = ()


def frame(kind: int, stream: int = 0, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """One whole frame."""
    return HEAD.pack(len(payload), kind, flags, 0, stream) + payload


def call_frame(stream: int, key: bytes, wall_ms: int, variables: bytes, *, flags: int) -> bytes:
    """CALL: which instance, for how long, and the variables: ``NAME=VALUE``, each with a zero byte behind it."""
    head = HEAD.pack(12 + len(key) + len(variables), CALL, flags, 0, stream)
    return b"%b%b%b%b%b" % (
        head,
        _TWO.pack(wall_ms, len(key)),
        key,
        _U32.pack(variables.count(0)),
        variables,
    )


def credit_payload(count: int) -> bytes:
    """CREDIT: so many bytes more."""
    return _U32.pack(count)


def credit_of(payload: bytes) -> int:
    """The bytes that a CREDIT grants."""
    return int(_U32.unpack_from(payload)[0])


def ended_of(payload: bytes) -> Ended:
    """What END tells."""
    outcome, *numbers = _END.unpack_from(payload)
    return Ended(Outcome(outcome), *numbers)


def load_payload(program: Program) -> bytes:
    """LOAD."""
    parts = [
        _LIMITS.pack(
            program.reactor,
            len(program.preopens),
            program.memory_bytes,
            program.table_elements,
            program.fuel,
            program.response_bytes,
            program.log_bytes,
            program.cpu_ns,
        ),
        _text(program.key),
        _text(program.code),
        _text(program.handler),
        _U32.pack(len(program.args)),
        *(_text(each) for each in program.args),
        _U32.pack(len(program.env)),
        *(_text(f"{name}={value}") for name, value in program.env.items()),
        *(bytes((writable,)) + _text(guest) for guest, writable in program.preopens),
    ]
    return b"".join(parts)


def counters_of(payload: bytes) -> tuple[str, Counters]:
    """What STATS tells, of which instance."""
    return payload[_STATS.size :].decode(), Counters(*_STATS.unpack_from(payload))


def log_of(payload: bytes) -> tuple[str, str, str, bytes]:
    """What LOG tells: stream name, key of the instance, request id, bytes."""
    key, place = _text_at(payload, 1)
    request_id, place = _text_at(payload, place)
    return ("engine" if payload[0] else "stderr"), key.decode(), request_id.decode("utf-8", "replace"), payload[place:]


def _text(value: str) -> bytes:
    data = value.encode()
    return _U32.pack(len(data)) + data


def _text_at(payload: bytes, place: int) -> tuple[bytes, int]:
    (size,) = _U32.unpack_from(payload, place)
    return payload[place + 4 : place + 4 + size], place + 4 + size
