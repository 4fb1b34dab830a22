"""Workers' doors without workers: real gRPC, TLS and tokens; what comes in is compiled by a child process here."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from corral.actions.adapters.grpc_results import EndedExecution
from corral.actions.adapters.messages import read_action, read_command, read_directory
from corral.actions.errors import MissingBlobs
from corral.actions.model import ActionResult, ActionTimes, Ended, OutputFile, Performed, StoredResult
from corral.app.own_certificate import CERTIFICATE, KEY, make
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import read_bytes, write_bytes
from corral.blobs.ports import BlobStore
from corral.compile.remote.layout import PLACE
from corral.compile.remote.model import WorkerRoute
from corral.doors.worker.config import WorkerDoorConfig
from corral.doors.worker.entrance import PURPOSE, Entrance
from corral.doors.worker.places import Places
from corral.doors.worker.servicer import DoorServicer, DoorServices
from corral.fleet.adapters.grpc_server import serving
from corral.fleet.tokens import TTL_S, RouteClaims, SigningKey
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.concurrency import background
from corral.kernel.digest import Digest
from corral.kernel.errors import NoFeasibleWorker, NotFound, WorkerLost
from corral.ledger.model import AuditRow
from corral.wire.certificates import fingerprint_of
from corral.wire.transport import ServerTls, WireLimits
from corral.wire.v1 import door_pb2_grpc

_BYTES_MAX = 64 * 1024**2


class ChildRunner:
    """Runs actions as child processes in a folder of their own: no sandbox, so for tests of compilers only."""

    def __init__(self, blobs: BlobStore, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._clock = SystemClock()
        self.runs = 0
        self.before: Callable[[], None] = lambda: None

    async def run(
        self, tenant: str, digest: Digest, *, platform: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Performed:
        """See ``actions.runner.ActionRunner.run``."""
        self.runs += 1
        self.before()
        try:
            action = read_action(await self._read(tenant, digest), digest.function)
            command = read_command(await self._read(tenant, action.command))
            root = Path(mkdtemp(dir=self._folder))
            missing: list[Digest] = []
            await self._stage(tenant, action.input_root, root, missing)
        except NotFound:
            raise MissingBlobs([digest]) from None
        if missing:
            raise MissingBlobs(missing)
        here = root / command.working_directory
        started_s = self._clock.now_s()
        words = [word.replace(PLACE, str(root)) for word in command.arguments]
        done = await asyncio.to_thread(
            subprocess.run, words, cwd=here, env=dict(command.environment), capture_output=True, check=False
        )
        clean = str(root).encode(), PLACE.encode()
        files, named = [], []
        for path in command.output_paths:
            content = await asyncio.to_thread(_content, here / path)
            if content is not None:
                content = content.replace(*clean) if path.endswith(".d") else content
                stored = await write_bytes(self._blobs, tenant, content)
                files.append(OutputFile(path, stored))
                named.append(stored)
        await asyncio.to_thread(shutil.rmtree, root)
        result = ActionResult(
            exit_code=done.returncode,
            files=tuple(files),
            stdout=done.stdout.replace(*clean),
            stderr=done.stderr.replace(*clean),
            times=ActionTimes(execution_start_s=started_s, execution_completed_s=self._clock.now_s()),
        )
        return Performed(result=result, ended=Ended.EXITED, named=tuple(named), argv=command.arguments)

    async def _read(self, tenant: str, digest: Digest) -> bytes:
        return await read_bytes(self._blobs, tenant, digest, bytes_max=_BYTES_MAX)

    async def _stage(self, tenant: str, digest: Digest, place: Path, missing: list[Digest]) -> None:
        await asyncio.to_thread(place.mkdir, exist_ok=True)
        listing = read_directory(await self._read(tenant, digest), digest.function)
        for file in listing.files:
            try:
                (place / file.name).write_bytes(await self._read(tenant, file.digest))
            except NotFound:
                missing.append(file.digest)
        for directory in listing.directories:
            await self._stage(tenant, directory.digest, place / directory.name, missing)


class KeptResults:
    """Results in memory; audit rows in a list."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, Digest], StoredResult] = {}
        self.rows: list[AuditRow] = []

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        """See ``actions.ports.ActionCache``."""
        return self.kept.get((tenant, action))

    async def tell(self, ended: Sequence[EndedExecution]) -> None:
        """See ``actions.adapters.grpc_results.SchedulerResults``."""
        for each in ended:
            self.rows.append(each.row)
            if each.result is not None:
                self.kept[each.tenant, each.action] = each.result


class SameToolchain:
    """Clients and workers are on one machine."""

    def __init__(self) -> None:
        self.difference = ""

    async def differing(self, compiler: str, identity: str, files: Sequence[tuple[str, str]]) -> str:
        """Nothing, unless told otherwise."""
        return self.difference


@dataclass
class FakeWorker:
    """One door that is open."""

    worker_id: str
    blobs: MemoryBlobs
    runner: ChildRunner
    results: KeptResults
    toolchain: SameToolchain
    servicer: DoorServicer
    places: Places
    fingerprint: str
    result_key: str
    address: str = ""


@dataclass
class FakeRoutes:
    """The scheduler: sends clients to its workers in order, with tokens that it signs itself."""

    key: SigningKey
    clock: Clock
    workers: list[FakeWorker]
    tenant: str = "acme"
    slots: int = 2
    asked: list[tuple[str, ...]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    change: Callable[[RouteClaims], RouteClaims] = lambda claims: claims
    sign: Callable[[RouteClaims], str] | None = None

    async def route(self, *, image: str, slots: int, avoid: Collection[str]) -> Sequence[WorkerRoute]:
        """See ``compile.remote.model.Routes``."""
        self.asked.append(tuple(avoid))
        usable = sorted(self.workers, key=lambda each: each.worker_id in avoid)
        if not usable:
            raise NoFeasibleWorker("there is no worker")
        worker = usable[0]
        now_s = self.clock.now_s()
        claims = self.change(
            RouteClaims(
                tenant=self.tenant,
                image=image,
                worker=worker.worker_id,
                purpose=PURPOSE,
                iat=now_s,
                exp=now_s + TTL_S,
                jti=f"r{len(self.asked)}",
            )
        )
        return [
            WorkerRoute(
                id=claims.jti,
                worker_id=worker.worker_id,
                address=worker.address,
                certificate_fingerprint=worker.fingerprint,
                token=(self.sign or self.key.token)(claims),
                slots=self.slots,
                expires_in_s=TTL_S,
                result_key=worker.result_key,
            )
        ]

    async def release(self, route_ids: Collection[str]) -> None:
        """See ``compile.remote.model.Routes``."""
        self.released.extend(route_ids)

    async def close(self) -> None:
        """Nothing to free."""


@asynccontextmanager
async def open_worker(
    folder: Path, worker_id: str, key: SigningKey, *, places: int = 4, answer_within_s: float = 600.0
) -> AsyncIterator[FakeWorker]:
    """A door on a free port of loopback, with a certificate made here, until the block ends."""
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread(make, folder, worker_id)
    clock, blobs, signer = SystemClock(), MemoryBlobs(), SigningKey()
    runner, results, toolchain = ChildRunner(blobs, folder), KeptResults(), SameToolchain()
    entrance = Entrance(worker_id, clock)
    entrance.learn(key.public)
    shared = Places(places, worker_id)
    servicer = DoorServicer(
        DoorServices(
            worker_id=worker_id,
            entrance=entrance,
            blobs=blobs,
            runner=runner,
            results=results,
            toolchains=toolchain,
            sign=signer.sign,
            clock=clock,
            config=WorkerDoorConfig(listen="127.0.0.1:0", answer_within_s=answer_within_s),
            places=shared,
            new_id=lambda: f"exe-{worker_id}-{runner.runs}",
        )
    )
    worker = FakeWorker(
        worker_id,
        blobs,
        runner,
        results,
        toolchain,
        servicer,
        shared,
        fingerprint_of(folder / CERTIFICATE),
        signer.public.hex(),
    )
    async with serving(
        "127.0.0.1:0",
        [partial(door_pb2_grpc.add_DoorServicer_to_server, servicer)],
        limits=WireLimits(message_bytes_max=_BYTES_MAX),
        tls=ServerTls(certificate=str(folder / CERTIFICATE), key=str(folder / KEY)),
    ) as port:
        worker.address = f"127.0.0.1:{port}"
        async with background(servicer.tell_forever(), name="tell"):
            yield worker


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def dies() -> None:
    """For ``ChildRunner.before``: the worker is gone in the middle of an execution."""
    raise WorkerLost("the worker died")
