"""The nouns of functions.

A *function* is a name of a tenant; a *revision* is one version of it, which never changes; an *instance* is one
replica of a revision on a worker: the loaded program and a bounded number of requests in flight. A *split* says which
revisions get the function's requests, in whole percent; with one revision at 100 that one is the *default*, and an
empty split means that the function has no default.

What crosses an edge (REST, the database, the stream to workers) is a Struct. Sizes are bytes, times seconds.
"""

from enum import StrEnum
from typing import Final

import msgspec

from corral.kernel.digest import Digest

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
    """What a worker can host. ``engine`` names the engine and its version; "" when it cannot run, see ``trouble``.

    ``front`` is where its functions are called; "" while they cannot be, see ``front_trouble``.
    """

    engine: str = ""
    trouble: str = ""
    kinds: tuple[Kind, ...] = ()
    instances: int = 0
    memory_bytes: int = 0
    front: str = ""
    front_trouble: str = ""


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


def fingerprint(spec: RevisionSpec) -> str:
    """16 hex digits that name the content of a revision; the same for equal specs."""
    return Digest.of(msgspec.json.encode(spec, order="sorted")).hash[:16]
