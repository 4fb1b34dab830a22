"""The nouns of functions.

A *function* is a name of a tenant; a *revision* is one version of it, which never changes; an *instance* is one
replica of a revision on a worker: the loaded program and a bounded number of requests in flight. A *split* says which
revisions get the function's requests, in whole percent; with one revision at 100 that one is the *default*, and an
empty split means that the function has no default.

What crosses an edge (REST, the database, the stream to workers) is a Struct. Sizes are bytes, times seconds.
"""

import re
from enum import StrEnum
from typing import Final

import msgspec

from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_FUNCTION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_REVISION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OUTBOUND: Final = re.compile(r"(https?)://([a-z0-9.-]{1,253}|\[[0-9a-f:]{2,39}\])(:[0-9]{1,5})?")
_MIB: Final = 1024**2


class Kind(StrEnum):
    """How a program is entered.

    ``wasi-command``: a core module with ``_start`` (WASI preview 1); a fresh store per request, the request on stdin
    and as CGI variables, the answer on stdout. ``http-component``: a component that exports wasi:http/incoming-handler.
    ``reactor``: a core module with an exported handler over its linear memory (docs/reference/functions.md).
    """

    WASI_COMMAND = "wasi-command"
    HTTP_COMPONENT = "http-component"
    REACTOR = "reactor"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one revision may use. All are enforced on the worker or by the front; see ``check_spec`` for the ranges.

    Attributes:
        memory_bytes: linear memory of one request, all memories together.
        cpu_s: CPU time of one request.
        wall_s: from the first byte to the last byte of one request; passed: 504.
        fuel: instructions of one request, as the engine counts them; 0 for none.
        stack_bytes: of the program.
        table_elements: of all tables of one request.
        core_instances: instances, memories and tables that a component may make for one request.
        concurrency: requests in flight in one instance.
        queue: requests that may wait at a front for a free place; more get 429.
        queue_s: how long a request waits there at most; passed: 429 (503 when no instance could be started).
        requests_per_s: of the whole revision at one front; 0 for no limit.
        body_bytes: of a request.
        response_bytes: of an answer.
        log_bytes: stdout (where it is not the answer) and stderr kept of one request.
        compile_s: how long compiling may take.
    """

    memory_bytes: int = 64 * _MIB
    cpu_s: float = 1.0
    wall_s: float = 10.0
    fuel: int = 0
    stack_bytes: int = 512 * 1024
    table_elements: int = 10_000
    core_instances: int = 16
    concurrency: int = 16
    queue: int = 128
    queue_s: float = 5.0
    requests_per_s: float = 0.0
    body_bytes: int = 8 * _MIB
    response_bytes: int = 8 * _MIB
    log_bytes: int = 64 * 1024
    compile_s: float = 30.0


class Preopen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory that the program sees at ``guest``: a tree of the store, or a volume that the worker's owner named.

    A tree is read-only; a volume only where ``writable`` is not asked for, or its configuration allows it.
    """

    guest: str
    tree: str = ""
    volume: str = ""
    writable: bool = False


class RevisionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an engine needs to run a revision; never changes once it is deployed.

    Attributes:
        module: digest of the program, ``b3:…`` or ``sha256:…``, a blob of the tenant.
        args: after the program's name.
        env: variables beside those of the request.
        outbound: ``http(s)://host[:port]`` that it may call; nothing else.
        handler: of a reactor: the name of the export.
    """

    module: str
    kind: Kind
    limits: Limits = Limits()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    preopens: tuple[Preopen, ...] = ()
    outbound: tuple[str, ...] = ()
    handler: str = "handle"


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many instances a revision has.

    Attributes:
        min: even without requests, while it has a part of the split; 0 lets the first request start one.
        max: at most.
        target: requests in flight (or waiting) that one instance should have.
        idle_s: how long it keeps instances that nobody needs.
    """

    min: int = 0
    max: int = 8
    target: float = 8.0
    idle_s: float = 60.0


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a function's requests that a revision gets."""

    revision: str
    percent: int


class RevisionPhase(StrEnum):
    """``active``: may run. ``stopped``: an operator wants no instance of it. ``broken``: the breaker stopped it."""

    ACTIVE = "active"
    STOPPED = "stopped"
    BROKEN = "broken"


class OnBreak(StrEnum):
    """What follows when the default revision breaks: leave the function without one, or take the one before."""

    NOTHING = "nothing"
    PREVIOUS = "previous"


class FunctionKey(msgspec.Struct, frozen=True, order=True):
    """Names a function among all tenants. A pair, so that no two names can run together."""

    tenant: str
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class RevisionKey(msgspec.Struct, frozen=True, order=True):
    """Names one content of one revision: ``fingerprint`` is that of its spec, so a name that is used again differs."""

    function: FunctionKey
    revision: str
    fingerprint: str


# What workers do, and say of it.


class InstancePhase(StrEnum):
    """Where an instance stands, as its worker says. ``failed`` and ``stopped`` are final and reported until let go."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class InstanceOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that should be on a worker. ``id`` is ``fni_…``, new for every start."""

    id: str
    key: RevisionKey
    spec: RevisionSpec


class InstanceStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of an instance since it started, and what it has now.

    Attributes:
        requests: answered in whatever way; ``errors`` of them with 5xx by the function itself.
        traps: requests that ended in a trap or by a limit of memory, stack or fuel.
        timeouts: requests that ended by ``cpu_s`` or ``wall_s``.
        refused: turned away because it was full.
        in_flight: now.
        cpu_s: used by requests.
        memory_bytes: resident now, as far as the engine can tell; ``memory_peak_bytes`` the largest of one request.
        latency_s: sum over requests; ``latency_p50_s`` and ``latency_p99_s`` of the last few thousand.
        instantiate_s: sum of the time to make fresh stores.
    """

    requests: int = 0
    errors: int = 0
    traps: int = 0
    timeouts: int = 0
    refused: int = 0
    in_flight: int = 0
    cpu_s: float = 0.0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    latency_s: float = 0.0
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    instantiate_s: float = 0.0


class InstanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is: one instance on a worker.

    Attributes:
        address: where fronts reach it, ``HOST:PORT`` or ``unix:PATH`` (fronts of this worker only).
        reason: of a failure: ``start-failed`` (the revision's fault), ``engine-lost``, ``module-missing``, …
        text: one sentence for people.
        blame: the failure is the revision's own; counts for its breaker.
        pid: of the process that hosts it.
        started_s: Unix seconds; ``start_s`` how long the start took; ``cold`` when it had to be compiled.
    """

    id: str
    key: RevisionKey
    phase: InstancePhase
    address: str = ""
    reason: str = ""
    text: str = ""
    blame: bool = False
    pid: int = 0
    started_s: float = 0.0
    start_s: float = 0.0
    cold: bool = False
    stats: InstanceStats = InstanceStats()


class PrepareOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Fetch, check and compile this program now, and keep the result; repeated until it is answered."""

    key: RevisionKey
    spec: RevisionSpec


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a PrepareOrder. ``code`` is "" when it worked, else that of the error which ``text`` tells."""

    key: RevisionKey
    code: str = ""
    text: str = ""
    compile_s: float = 0.0
    cached: bool = False
    code_bytes: int = 0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a front has for one revision now: requests that wait for a place or an instance, and those in flight."""

    key: RevisionKey
    waiting: int = 0
    in_flight: int = 0


class EngineCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker can host. ``engine`` names the engine and its version; "" when it cannot run, see ``trouble``."""

    engine: str = ""
    trouble: str = ""
    kinds: tuple[Kind, ...] = ()
    instances: int = 0
    memory_bytes: int = 0
    front: str = ""


class FunctionsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is, of one worker: everything, each time."""

    capacity: EngineCapacity = EngineCapacity()
    instances: tuple[InstanceReport, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    demands: tuple[Demand, ...] = ()
    draining: bool = False
    routes_epoch: str = ""
    routes_version: int = 0


class FunctionsOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What should be, of one worker: everything, each time. An instance that is not named is to be drained."""

    instances: tuple[InstanceOrder, ...] = ()
    prepare: tuple[PrepareOrder, ...] = ()


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a program wrote, or what the engine says of a request (``stream`` "engine": traps with their backtrace).

    ``seq`` is given by the log's keeper; 0 on its way there.
    """

    key: RevisionKey
    at_s: float
    request_id: str = ""
    instance: str = ""
    stream: str = "stderr"
    text: str = ""
    seq: int = 0


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


def fingerprint(spec: RevisionSpec) -> str:
    """16 hex digits that name the content of a revision; the same for equal specs."""
    return Digest.of(msgspec.json.encode(spec, order="sorted")).hash[:16]


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
