"""A build of 5,000 files on 64 workers, whose compiler sleeps 100 ms, behind one scheduler: beside the ideal time.

Scheduler, routes, tokens, TLS, uploads, action cache and audit rows are real; only the sandbox and the compiler are
not. The workers are processes of their own, forked from this one before it opens any connection.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from blake3 import blake3

from bench.report import Row
from corral.actions.adapters.grpc_results import EndedExecution, SchedulerResults
from corral.actions.adapters.messages import read_action, read_directory
from corral.actions.errors import MissingBlobs
from corral.actions.model import ActionResult, Ended, OutputFile, Performed
from corral.app.compile_routes import fleet_compiler
from corral.app.own_certificate import CERTIFICATE, KEY, make
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import read_bytes, write_bytes
from corral.compile import cacheability, closure, grammars, key
from corral.compile.files import FileTable
from corral.compile.model import Bypass, CompilerIdentity, IncludeSet, Vendor
from corral.compile.ports import CompileRequest
from corral.compile.remote.model import OBJECT, RemoteConfig
from corral.doors.worker.config import WorkerDoorConfig
from corral.doors.worker.entrance import Entrance
from corral.doors.worker.servicer import DoorServicer, DoorServices
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.fleet.adapters.grpc_server import serving
from corral.fleet.model import Capacity, DesiredState, Registration, WorkerState
from corral.fleet.tokens import SigningKey
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.testing.processes import CorralProcess, public_directory
from corral.testing.worker_doors import SameToolchain
from corral.wire.certificates import fingerprint_of
from corral.wire.transport import ServerTls, WireLimits
from corral.wire.v1 import door_pb2_grpc

WORKERS = int(os.environ.get("CORRAL_BENCH_WORKERS", "64"))
FILES = int(os.environ.get("CORRAL_BENCH_FILES", "5000"))
_COMPILE_S = 0.1
_BOUND = 1.15
_BYTES_MAX = 64 * 1024**2
_OBJECT = b"\x7fELF" + bytes(4000)


class _Sleeper:
    """A compiler that sleeps."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs = blobs

    async def run(
        self, tenant: str, digest: Digest, *, platform: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Performed:
        """Look at all inputs, sleep, leave an object."""
        action = read_action(await read_bytes(self._blobs, tenant, digest, bytes_max=_BYTES_MAX), digest.function)
        missing = [each async for each in self._missing(tenant, action.input_root)]
        if missing:
            raise MissingBlobs(missing)
        await asyncio.sleep(_COMPILE_S)
        stored = await write_bytes(self._blobs, tenant, _OBJECT)
        result = ActionResult(files=(OutputFile(OBJECT, stored),))
        return Performed(result=result, ended=Ended.EXITED, named=(stored,))

    async def _missing(self, tenant: str, directory: Digest) -> Any:
        listing = read_directory(
            await read_bytes(self._blobs, tenant, directory, bytes_max=_BYTES_MAX), directory.function
        )
        for digest in await self._blobs.find_missing(tenant, [each.digest for each in listing.files]):
            yield digest
        for each in listing.directories:
            async for digest in self._missing(tenant, each.digest):
                yield digest


async def _worker(number: int, scheduler: str, folder: Path) -> None:
    """One worker, until it is killed."""
    name = f"wrk-{number}"
    make(folder, name)
    clock, blobs, signer = SystemClock(), MemoryBlobs(), SigningKey()
    entrance = Entrance(name, clock)
    registration = Registration(
        worker_id=name,
        instance=f"{number}",
        capacity=Capacity(slots=1),
        certificate_fingerprint=fingerprint_of(folder / CERTIFICATE),
        result_key=signer.public.hex(),
    )
    servicer: list[DoorServicer] = []

    def desired(state: DesiredState) -> None:
        entrance.learn(state.route_key)

    link = SchedulerLink(
        scheduler,
        "",
        registration,
        state=lambda: WorkerState(slots_free=1, executions=servicer[0].busy),
        on_desired=desired,
    )
    servicer.append(
        DoorServicer(
            DoorServices(
                worker_id=name,
                entrance=entrance,
                blobs=blobs,
                runner=_Sleeper(blobs),
                results=_Told(link),
                toolchains=SameToolchain(),
                sign=signer.sign,
                clock=clock,
                config=WorkerDoorConfig(listen="127.0.0.1:0"),
                places=1,
                new_id=lambda: f"exe-{number}-{time.monotonic_ns()}",
            )
        )
    )
    async with serving(
        "127.0.0.1:0",
        [partial(door_pb2_grpc.add_DoorServicer_to_server, servicer[0])],
        limits=WireLimits(message_bytes_max=_BYTES_MAX),
        tls=ServerTls(certificate=str(folder / CERTIFICATE), key=str(folder / KEY)),
    ) as port:
        link.registration = Registration(
            **{**_fields(registration), "address": f"127.0.0.1:{port}"}  # known only now
        )
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(servicer[0].tell_forever())
            await link.run()


class _Told(SchedulerResults):
    """The scheduler's action cache and ledger; the objects of this bench stay with their workers, so results do too."""

    async def tell(self, ended: Sequence[EndedExecution]) -> None:
        await super().tell([replace(each, result=None) for each in ended])


def _fields(registration: Registration) -> dict[str, Any]:
    return {name: getattr(registration, name) for name in registration.__struct_fields__}


def _fork(number: int, scheduler: str, home: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            (home / f"w{number}").mkdir()
            runner.run(_worker(number, scheduler, home / f"w{number}"))
    finally:
        os._exit(0)


def _requests(project: Path, count: int) -> list[CompileRequest]:
    """Files that all include one header; what they read is known from an earlier build."""
    header = "#define X 1\n"
    (project / "x.h").write_text(header)
    (project / ".corral").touch()
    identity = CompilerIdentity(digest="aa" * 32, path="/usr/bin/gcc", vendor=Vendor.GCC)
    made = []
    for number in range(count):
        source = f'#include "x.h"\nint f{number};\n'
        (project / f"f{number}.c").write_text(source)
        argv = ["/usr/bin/gcc", "-O2", "-Wall", "-I.", "-c", f"f{number}.c", "-o", f"f{number}.o"]
        invocation = grammars.parse(argv)
        assert not isinstance(invocation, Bypass)
        cacheable = cacheability.judge(invocation, {})
        assert not isinstance(cacheable, Bypass)
        root = str(project)
        inputs = key.key_inputs(invocation, cacheable, identity=identity, environment={}, cwd=root, root=root)
        files = ((f"f{number}.c", blake3(source.encode()).hexdigest()), ("x.h", blake3(header.encode()).hexdigest()))
        made.append(
            CompileRequest(
                argv=tuple(argv),
                cwd=root,
                root=root,
                environment={},
                invocation=invocation,
                cacheable=cacheable,
                identity=identity,
                inputs=inputs,
                request_key=key.request_key(inputs),
                include_set=IncludeSet(files=files),
            )
        )
    return made


async def _build(url: str, requests: Sequence[CompileRequest]) -> float:
    """Compile all, as many at once as make -j would; how long that takes, in seconds."""
    config = RemoteConfig(scheduler=url, slots=min(256, WORKERS))
    clock = SystemClock()
    hashes = FileTable(closure.traits, clock.now_s)
    async with asyncio.TaskGroup() as group:

        def start(work: Coroutine[Any, Any, None]) -> None:
            group.create_task(work)

        compiler = fleet_compiler(config, os.environ, clock, start)
        waiting = iter(requests)

        async def job() -> None:
            for request in waiting:
                answer = await compiler.compile(request, hashes)
                if answer.exit_code or answer.files["object"] != _OBJECT:
                    raise RuntimeError(f"{request.cacheable.source}: not what the worker made")

        async with asyncio.TaskGroup() as warm:  # connections, certificates
            for request in _requests_again(requests):
                warm.create_task(compiler.compile(request, hashes))
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as jobs:
            for _ in range(WORKERS * 2):
                jobs.create_task(job())
        took_s = time.perf_counter() - began_s
        await compiler.close()
    return took_s


def _requests_again(requests: Sequence[CompileRequest]) -> Sequence[CompileRequest]:
    return [requests[0]] * WORKERS


def measure() -> Sequence[Row]:
    """One build."""
    with public_directory() as home, tempfile.TemporaryDirectory(dir=home) as work:
        scheduler = CorralProcess(
            "scheduler", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=off"
        )
        workers: list[int] = []
        try:
            scheduler.start()
            workers = [_fork(number, scheduler.grpc, Path(work)) for number in range(WORKERS)]
            project = Path(work, "project")
            project.mkdir()
            requests = _requests(project, FILES)
            _wait_for_workers(scheduler.url)
            took_s = uvloop.run(_build(scheduler.url, requests))
        finally:
            for child in workers:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            scheduler.stop()
    ideal_s = FILES * _COMPILE_S / WORKERS
    return [
        Row(
            what=f"{FILES} compiles of 100 ms on {WORKERS} workers",
            ours=f"{took_s:.2f} s",
            against=f"ideal {ideal_s:.2f} s",
            ratio=f"{took_s / ideal_s:.2f} ×",
            bound=f"≤ {_BOUND:g} ×",
            ok=took_s <= ideal_s * _BOUND,
        )
    ]


def _wait_for_workers(url: str) -> None:
    import httpx  # noqa: PLC0415 - after the fork

    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        listed = httpx.get(f"{url}/api/v1/workers", timeout=30).json()["workers"]
        if sum(each["state"] == "ready" for each in listed) >= WORKERS:
            return
        time.sleep(0.5)
    raise RuntimeError("not all workers came")
