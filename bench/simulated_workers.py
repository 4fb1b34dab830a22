"""Workers whose compiler sleeps: all that clients and the scheduler see of them is real, sandbox and compiler are not.

Each is a process of its own, forked from this one before it opens any connection: certificate, door, tokens, uploads,
signatures, heartbeats, audit rows.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog
import uvloop

from corral.actions.adapters.grpc_results import EndedExecution, SchedulerResults
from corral.actions.adapters.messages import read_action, read_directory
from corral.actions.errors import MissingBlobs
from corral.actions.model import ActionResult, Ended, OutputFile, Performed
from corral.app.own_certificate import CERTIFICATE, KEY, make
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import read_bytes, write_bytes
from corral.compile.remote.model import OBJECT, RULES
from corral.doors.worker.config import WorkerDoorConfig
from corral.doors.worker.entrance import Entrance
from corral.doors.worker.places import Places
from corral.doors.worker.servicer import DoorServicer, DoorServices
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.fleet.adapters.grpc_server import serving
from corral.fleet.model import Capacity, DesiredState, Registration, WorkerState
from corral.fleet.tokens import SigningKey, is_signed
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.testing.worker_doors import SameToolchain
from corral.wire.certificates import fingerprint_of
from corral.wire.transport import ServerTls, WireLimits
from corral.wire.v1 import door_pb2_grpc

COMPILE_S: Final = 0.1
MADE: Final = b"\x7fELF" + bytes(4000)
"""What every compile leaves."""
_BYTES_MAX: Final = 64 * 1024**2


class _Sleeper:
    """A compiler that sleeps, and says that it has read all its inputs."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs = blobs

    async def run(
        self, tenant: str, digest: Digest, *, platform: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Performed:
        """Look at all inputs, sleep, leave an object."""
        action = read_action(await read_bytes(self._blobs, tenant, digest, bytes_max=_BYTES_MAX), digest.function)
        data = await read_bytes(self._blobs, tenant, action.input_root, bytes_max=_BYTES_MAX)
        inputs = read_directory(data, digest.function).files
        if missing := await self._blobs.find_missing(tenant, [each.digest for each in inputs]):
            raise MissingBlobs(missing)
        await asyncio.sleep(COMPILE_S)
        rules = f"{OBJECT}: {' '.join(each.name for each in inputs)}\n".encode()
        made = [OutputFile(name, await write_bytes(self._blobs, tenant, data)) for name, data in _outputs(rules)]
        result = ActionResult(files=tuple(made))
        return Performed(result=result, ended=Ended.EXITED, named=tuple(each.digest for each in made))


def _outputs(rules: bytes) -> Sequence[tuple[str, bytes]]:
    return (OBJECT, MADE), (RULES, rules)


class _Told(SchedulerResults):
    """The scheduler's action cache and ledger; the objects stay with these workers, so results do too."""

    async def tell(self, ended: Sequence[EndedExecution]) -> None:
        await super().tell([replace(each, result=None) for each in ended])


async def _work(number: int, scheduler: str, folder: Path) -> None:
    """One worker with one slot, until it is killed."""
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

    def desired(state: DesiredState) -> None:
        entrance.learn(state.route_key)

    def state() -> WorkerState:
        return WorkerState(slots_free=1, executions=places.busy)

    link = SchedulerLink(scheduler, "", registration, state=state, on_desired=desired)
    places = Places(1, name, on_idle=link.state_changed)
    servicer = DoorServicer(
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
            places=places,
            new_id=lambda: f"exe-{number}-{time.monotonic_ns()}",
        )
    )
    async with serving(
        "127.0.0.1:0",
        [partial(door_pb2_grpc.add_DoorServicer_to_server, servicer)],
        limits=WireLimits(message_bytes_max=_BYTES_MAX),
        tls=ServerTls(certificate=str(folder / CERTIFICATE), key=str(folder / KEY)),
    ) as port:
        link.registration = msgspec.structs.replace(registration, address=f"127.0.0.1:{port}")
        async with asyncio.TaskGroup() as group:
            group.create_task(servicer.tell_forever())
            await link.run()


def fork_workers(count: int, scheduler: str, home: Path) -> list[int]:
    """Their pids; the caller kills and reaps them."""
    is_signed(bytes(32), b"", bytes(64))  # loads a heavy library once instead of once in each
    return [_fork(number, scheduler, home / f"w{number}") for number in range(count)]


def _fork(number: int, scheduler: str, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            folder.mkdir()
            runner.run(_work(number, scheduler, folder))
    finally:
        os._exit(0)
