"""The root of the configuration and the sections that belong to the processes themselves.

Every other section is defined by the component that obeys it; see ``docs/reference/configuration.md``.
"""

from pathlib import Path

import msgspec

from corral.actions.limits import ActionLimits
from corral.blobs.config import BlobsConfig
from corral.compile.limits import CompileConfig
from corral.database.limits import DatabaseLimits
from corral.doors.http_cache.config import HttpCacheConfig
from corral.doors.reapi.config import DEFAULT_ADDRESS, OFF, ReapiConfig
from corral.doors.worker.config import WorkerDoorConfig
from corral.fleet.adapters.grpc_link import LinkConfig
from corral.fleet.model import FleetConfig
from corral.functions.config import FunctionsConfig
from corral.functions.engine.config import EngineConfig
from corral.images.model import ImagesConfig
from corral.kernel.errors import InvalidSpec
from corral.ledger.limits import LedgerLimits
from corral.sandboxes.guest.kit import default_data_directory
from corral.sandboxes.pool_model import PoolConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig
from corral.tasks.limits import QueueLimits
from corral.tasks.logs import LogConfig
from corral.tasks.plugins.artifacts import ArtifactsConfig
from corral.tasks.plugins.cache import CacheConfig
from corral.tasks.plugins.env import EnvConfig
from corral.tasks.plugins.livelog import LiveLogConfig
from corral.tasks.plugins.maxruntime import MaxRunTimeConfig
from corral.tasks.plugins.watchdog import WatchdogConfig
from corral.tasks.run_config import RunConfig, WorkerConfig
from corral.tenants.model import AccessConfig, TenantConfig
from corral.wire.address import address_problem
from corral.wire.transport import ServerTls, WireLimits, is_loopback


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the REST door.

    Attributes:
        body_bytes: largest JSON request; blobs have their own limit.
        batch_tasks: most tasks in one submission.
        page_rows: most rows in one page of a listing.
        wait_s: longest that a "wait until it changed" request is held.
        streams: most log and event streams that are open at once.
        stop_s: how long open requests may finish when the process stops.
    """

    body_bytes: int = 8 * 1024**2
    batch_tasks: int = 1000
    page_rows: int = 1000
    wait_s: float = 30.0
    streams: int = 1000
    stop_s: float = 3.0


class HttpTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the REST door shows who it is.

    Attributes:
        certificate, key: paths of PEM files. Without them: those of ``tls`` where other machines can reach
            ``scheduler.http``, and plain text on loopback.
        plain: speak plain text although other machines can reach the address; it must be said on purpose.
    """

    certificate: str = ""
    key: str = ""
    plain: bool = False

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: give both or none")
        if self.certificate and self.plain:
            raise ValueError("certificate and plain contradict each other: give one of them")


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scheduler process.

    Attributes:
        http: address of REST, ``HOST:PORT``; port 0 takes a free one.
        grpc: address for workers, ``HOST:PORT``; port 0 takes a free one.
        database: ``sqlite:///PATH`` or ``postgresql://…``; "" is ``corral.db`` in the data directory.
        http_tls: certificate of the REST door.
        http_limits: limits of the REST door.
    """

    http: str = "127.0.0.1:7070"
    grpc: str = "127.0.0.1:7071"
    database: str = ""
    http_tls: HttpTls = HttpTls()
    http_limits: HttpConfig = HttpConfig()

    def __post_init__(self) -> None:
        mistakes = [
            f"{name}: {problem}" for name in ("http", "grpc") if (problem := address_problem(getattr(self, name)))
        ]
        if self.database and not self.database.startswith(("sqlite:///", "postgresql://")):
            mistakes.append(f'database: "{self.database}" is neither "sqlite:///PATH" nor "postgresql://…"')
        if mistakes:
            raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))


class PluginsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the worker's plugins, one section each.

    Attributes:
        artifacts: bounds of what a run may leave.
        cache: the budget of caches.
        env: variables for every task.
        livelog: how logs travel.
        maxruntime: how long commands may run.
        watchdog: when a worker that does nothing is stopped.
    """

    artifacts: ArtifactsConfig = ArtifactsConfig()
    cache: CacheConfig = CacheConfig()
    env: EnvConfig = EnvConfig()
    livelog: LiveLogConfig = LiveLogConfig()
    maxruntime: MaxRunTimeConfig = MaxRunTimeConfig()
    watchdog: WatchdogConfig = WatchdogConfig()


class JoinConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker joins the fleet.

    Attributes:
        scheduler: address of the scheduler's gRPC, ``HOST:PORT``.
        token: the worker's token; not needed on one machine.
        id: the worker's id, kept over restarts; "" keeps one in the data directory.
        labels: free words for people and placement.
        link: the connection, and how the scheduler's certificate is checked.
    """

    scheduler: str = "127.0.0.1:7071"
    token: str = ""
    id: str = ""
    labels: dict[str, str] = {}
    link: LinkConfig = LinkConfig()

    def __post_init__(self) -> None:
        if problem := address_problem(self.scheduler):
            raise InvalidSpec(f"scheduler: {problem}")


class SupervisorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``corral up``: how children are started again.

    Attributes:
        ready_s: longest from the start to "ready".
        backoff_s: pause before the first restart; doubles with each further one up to ``backoff_max_s``.
        backoff_max_s: the longest pause.
        restarts: more restarts of one child than this within ``restarts_within_s`` and ``corral up`` gives up.
        restarts_within_s: the window in which restarts are counted.
        stop_s: how long the worker may finish its tasks when everything stops.
    """

    ready_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    restarts: int = 60
    restarts_within_s: float = 60.0
    stop_s: float = 10.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything.

    Attributes:
        data_dir: database, logs, blobs, caches and leftovers of this machine's processes.
        scheduler: the scheduler process.
        supervisor: ``corral up``.
        join: how the worker finds and joins the fleet.
        worker: the worker's claim and lease loops.
        worker_door: the worker's own door, for clients with a route (``corral cc``).
        runs: policy and bounds for runs.
        runtimes: kinds of isolation that the worker offers.
        images: OCI images that the worker runs.
        pool: warm sandboxes.
        plugins: features of the task life cycle.
        queue: what the queue accepts and how long it waits.
        fleet: heartbeats and eviction.
        actions: cached execution of commands, on the scheduler and on workers.
        functions: the registry of functions, and decisions about their instances.
        engine: functions on a worker: programs, their processes and the HTTP front.
        compile: cached compiles; read by the daemon of ``corral cc`` alone.
        reapi: the door for Bazel and its kin.
        http_cache: caches over plain HTTP.
        blobs: the content-addressed store.
        logs: the log store of the scheduler.
        ledger: audit rows and security events.
        database: bounds of the use of the database.
        wire: connections between scheduler and worker.
        tls: certificate of the scheduler's gRPC.
        access: tokens that belong to no tenant.
        tenants: one table per tenant; with none there is one, named default.
    """

    data_dir: str = ""
    scheduler: SchedulerConfig = SchedulerConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    join: JoinConfig = JoinConfig()
    worker: WorkerConfig = WorkerConfig()
    worker_door: WorkerDoorConfig = WorkerDoorConfig()
    runs: RunConfig = RunConfig()
    runtimes: RuntimesConfig = RuntimesConfig()
    images: ImagesConfig = ImagesConfig()
    pool: PoolConfig = PoolConfig()
    plugins: PluginsConfig = PluginsConfig()
    queue: QueueLimits = QueueLimits()
    fleet: FleetConfig = FleetConfig()
    actions: ActionLimits = ActionLimits()
    functions: FunctionsConfig = FunctionsConfig()
    engine: EngineConfig = EngineConfig()
    compile: CompileConfig = CompileConfig()
    reapi: ReapiConfig = ReapiConfig()
    http_cache: HttpCacheConfig = HttpCacheConfig()
    blobs: BlobsConfig = BlobsConfig()
    logs: LogConfig = LogConfig()
    ledger: LedgerLimits = LedgerLimits()
    database: DatabaseLimits = DatabaseLimits()
    wire: WireLimits = WireLimits()
    tls: ServerTls = ServerTls()
    access: AccessConfig = AccessConfig()
    tenants: dict[str, TenantConfig] = {}

    @property
    def data(self) -> Path:
        """The data directory; ``$XDG_DATA_HOME/corral`` when none is configured."""
        return Path(self.data_dir or default_data_directory()).expanduser().absolute()

    @property
    def images_directory(self) -> Path:
        """Where prepared images lie."""
        return Path(self.images.directory) if self.images.directory else self.data / "images"

    @property
    def database_url(self) -> str:
        """Where the state is kept."""
        return self.scheduler.database or f"sqlite:///{self.data / 'corral.db'}"

    @property
    def http_tls(self) -> HttpTls:
        """What the REST door really shows."""
        own = self.scheduler.http_tls
        if own.certificate or own.plain or is_loopback(self.scheduler.http):
            return own
        return HttpTls(certificate=self.tls.certificate, key=self.tls.key)

    def contradictions(self) -> list[str]:
        """Settings that are right by themselves and wrong together."""
        found = self._address_contradictions()
        if self.http_cache.shared and self.tenants and self.http_cache.shared not in self.tenants:
            found.append(f'http_cache.shared: "{self.http_cache.shared}" is not among the tenants')
        if self.plugins.livelog.log_bytes_max < self.logs.log_bytes_max:
            found.append("plugins.livelog.log_bytes_max must be at least logs.log_bytes_max")
        if self.queue.lease_s != self.fleet.lease_s:
            found.append(
                f"queue.lease_s ({self.queue.lease_s:g}) and fleet.lease_s ({self.fleet.lease_s:g}) must be the same: "
                "workers renew by what they are told"
            )
        if self.scheduler.http_limits.batch_tasks > self.queue.submit_tasks:
            found.append("scheduler.http_limits.batch_tasks must not exceed queue.submit_tasks")
        if self.runs.runtime and self.runs.runtime not in self.runtimes.names:
            offered = ", ".join(self.runtimes.names)
            found.append(f'runs.runtime "{self.runs.runtime}" is not in runtimes.names ({offered})')
        if self.pool.max < self.worker.slots:
            found.append(f"pool.max ({self.pool.max}) must be at least worker.slots ({self.worker.slots})")
        return found

    def _address_contradictions(self) -> list[str]:
        found = []
        if self.scheduler.http == self.scheduler.grpc and not self.scheduler.http.endswith(":0"):
            found.append(f"scheduler.http and scheduler.grpc are both {self.scheduler.http}; they need two ports")
        reapi = self.reapi.address or DEFAULT_ADDRESS
        if reapi != OFF and (problem := address_problem(reapi)):
            found.append(f"reapi.address: {problem}")
        if reapi in (self.scheduler.http, self.scheduler.grpc) and not reapi.endswith(":0"):
            found.append(f"reapi.address and the scheduler's own addresses are both {reapi}; they need two ports")
        shown = self.http_tls
        if not (shown.certificate or shown.plain or is_loopback(self.scheduler.http)):
            found.append(
                f"scheduler.http: {self.scheduler.http} can be reached from other machines, and no TLS certificate is "
                "configured; give scheduler.http_tls.certificate and key, or say scheduler.http_tls.plain = true if "
                "the network itself is safe"
            )
        return found
