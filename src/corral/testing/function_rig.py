"""The functions of one worker without a scheduler: real hosts, a real front, a store in memory.

The rig does what the scheduler would: it orders instances and pushes routes.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.blobs.local_trees import upload_directory
from corral.functions.engine.config import EngineConfig
from corral.functions.engine.host import WorkerFunctions
from corral.functions.front.limits import FrontConfig
from corral.functions.model import (
    FunctionKey,
    InstanceOrder,
    InstancePhase,
    InstanceReport,
    Kind,
    Limits,
    LogLine,
    Preopen,
    Prepared,
    PrepareOrder,
    RevisionKey,
    RevisionSpec,
    fingerprint,
)
from corral.functions.routing import Backend, FunctionRoute, RevisionRoute, RoutingUpdate
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest

_WAIT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What came back on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(kw_only=True)
class Deployed:
    """A revision that the rig routes to."""

    key: RevisionKey
    spec: RevisionSpec
    percent: int = 100
    instances: list[str] = field(default_factory=list)


class FunctionRig:
    """See the module; ``open_rig`` makes one."""

    def __init__(self, host: WorkerFunctions, blobs: MemoryBlobs, home: Path) -> None:
        self.host, self.blobs, self.home = host, blobs, home
        self.lines: list[LogLine] = []
        self.deployed: dict[tuple[str, str, str], Deployed] = {}
        self.news = Signal()
        self._version = 0
        self._numbers = count(1)
        host.connect(on_change=self.news.notify, on_log=self._line)

    def _line(self, line: LogLine) -> None:
        self.lines.append(line)
        self.news.notify()

    @property
    def port(self) -> int:
        return int(self.host.capacity().front.rpartition(":")[2])

    async def spec(
        self,
        program: bytes,
        *,
        tenant: str = "default",
        kind: Kind = Kind.WASI_COMMAND,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        preopens: tuple[Preopen, ...] = (),
        outbound: tuple[str, ...] = (),
    ) -> RevisionSpec:
        """A spec whose program is in the store."""
        digest = Digest.of(program)
        await write_bytes(self.blobs, tenant, program)
        return RevisionSpec(
            module=str(digest),
            kind=kind,
            limits=limits or Limits(),
            env=dict(env or {}),
            preopens=preopens,
            outbound=outbound,
        )

    async def store_tree(self, directory: Path, *, tenant: str = "default") -> str:
        """Put a directory into the store; gives its digest."""
        return str(await upload_directory(self.blobs, tenant, directory))

    async def prepare(self, spec: RevisionSpec, *, tenant: str = "default") -> Prepared:
        """Check and compile."""
        key = RevisionKey(FunctionKey(tenant, "prepared"), "v1", fingerprint(spec))
        return await self.host.prepare(PrepareOrder(key=key, spec=spec))

    async def deploy(
        self, name: str, spec: RevisionSpec, *, tenant: str = "default", revision: str = "v1", replicas: int = 1
    ) -> Deployed:
        """Start instances, wait until they are ready, and route to them."""
        key = RevisionKey(FunctionKey(tenant, name), revision, fingerprint(spec))
        deployed = self.deployed[tenant, name, revision] = Deployed(key=key, spec=spec)
        for _ in range(replicas):
            await self.add_instance(deployed)
        await self.route()
        return deployed

    async def add_instance(self, deployed: Deployed) -> str:
        """One more; ready when this returns."""
        instance = f"fni_{next(self._numbers)}"
        await self.host.start(InstanceOrder(id=instance, key=deployed.key, spec=deployed.spec))
        await self.until(lambda: self.report(instance).phase is not InstancePhase.STARTING)
        report = self.report(instance)
        assert report.phase is InstancePhase.READY, report
        deployed.instances.append(instance)
        return instance

    def report(self, instance: str) -> InstanceReport:
        return next(each for each in self.host.reports() if each.id == instance)

    async def route(self, extra: Mapping[RevisionKey, tuple[Backend, ...]] | None = None) -> None:
        """Push the routes as they should be, with ``extra`` instances, and wait until they are used."""
        self._version += 1
        functions: dict[FunctionKey, list[RevisionRoute]] = {}
        for deployed in self.deployed.values():
            backends = (extra or {}).get(deployed.key, ()) + tuple(
                Backend(instance=each.id, worker="w", address=each.address)
                for each in self.host.reports()
                if each.id in deployed.instances and each.phase is InstancePhase.READY
            )
            route = RevisionRoute(
                key=deployed.key, percent=deployed.percent, limits=deployed.spec.limits, backends=backends
            )
            functions.setdefault(deployed.key.function, []).append(route)
        changed = tuple(
            FunctionRoute(key=key, version=self._version, revisions=tuple(routes)) for key, routes in functions.items()
        )
        update = RoutingUpdate(epoch="rig", base=0, version=self._version, whole=True, changed=changed)
        assert self.host.update_routes(update)
        await self.until(lambda: self.host.routes_in_use() == ("rig", self._version))

    async def until(self, condition: object, *, within_s: float = _WAIT_S) -> None:
        """Wait until it holds. Raises TimeoutError."""
        assert callable(condition)
        async with asyncio.timeout(within_s):
            while not condition():
                await self.news.wait_notified(within_s=0.02)

    async def get(self, path: str, *, method: str = "GET", headers: str = "", body: bytes = b"") -> Answer:
        """One request on a connection of its own."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}{length}\r\n"
        return await self.raw(head.encode() + body)

    async def raw(self, request: bytes, *, within_s: float = 30.0) -> Answer:
        """Send bytes and read until the other side closes."""
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)  # and not waited for: a server that answers early would wait for its reader
                data = b""
                with suppress(ConnectionError):
                    while piece := await reader.read(65536):
                        data += piece
                return parse_answer(data)
            finally:
                writer.close()


def parse_answer(data: bytes) -> Answer:
    """Status, headers and body; a chunked body is put together. Raises ValueError when it is cut off."""
    head, _, body = data.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while True:
            size, _, body = body.partition(b"\r\n")
            if not size:
                raise ValueError("the answer was cut off")
            if int(size, 16) == 0:
                return Answer(status, headers, whole)
            whole += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
    return Answer(status, headers, body)


@asynccontextmanager
async def open_rig(data: Path, **settings: object) -> AsyncIterator[FunctionRig]:
    """A worker's functions on a free port, in ``data``."""
    front = settings.pop("front", FrontConfig(listen="127.0.0.1:0", drain_s=1.0))
    config = EngineConfig(front=front, **settings)  # type: ignore[arg-type]
    blobs = MemoryBlobs()
    async with WorkerFunctions(data, blobs, config, SystemClock()) as host:
        rig = FunctionRig(host, blobs, data / "functions")
        await rig.until(lambda: any((now := host.capacity(), now.front, now.front_trouble, now.trouble)[1:]))
        yield rig
