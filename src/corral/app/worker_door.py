"""The worker's own door, put together: TLS with the worker's certificate, tokens, the runner, the action cache."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from corral.actions.adapters.grpc_results import SchedulerResults
from corral.actions.runner import ActionRunner
from corral.app.config_sections import Config
from corral.app.own_certificate import CERTIFICATE, KEY, RESULT_SEED
from corral.blobs.ports import BlobStore
from corral.compile.remote.toolchain import LocalToolchains
from corral.doors.worker.entrance import Entrance
from corral.doors.worker.places import Places
from corral.doors.worker.refusals import Refusals
from corral.doors.worker.servicer import DoorServicer, DoorServices
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.fleet.adapters.grpc_server import serving
from corral.fleet.tokens import SigningKey
from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish
from corral.kernel.ids import new_id
from corral.wire.address import join_address, split_address
from corral.wire.transport import ServerTls, WireLimits
from corral.wire.v1 import door_pb2_grpc

_MESSAGE_BYTES_MAX = 64 * 1024**2
_TOLD_WITHIN_S = 5.0
_log = structlog.get_logger("corral.door")


@dataclass(frozen=True, slots=True)
class OpenDoor:
    """A door that is open. ``address`` is where clients dial."""

    places: Places
    entrance: Entrance
    address: str


@asynccontextmanager
async def worker_door(
    config: Config,
    data: Path,
    *,
    worker_id: str,
    link: SchedulerLink,
    blobs: BlobStore,
    runner: ActionRunner,
    clock: Clock,
) -> AsyncIterator[OpenDoor]:
    """Serve while the block runs. Raises InvalidSpec, Conflict for the address."""
    door = config.worker_door
    results = SchedulerResults(link)
    refusals = Refusals(clock, results.tell_refusals)
    entrance = Entrance(worker_id, clock, on_refusal=refusals.record_nowait)
    # A scheduler that heard of a busy door would send nobody here until the next heartbeat.
    places = Places(door.executions or config.worker.slots, worker_id, on_idle=link.state_changed)
    servicer = DoorServicer(
        DoorServices(
            worker_id=worker_id,
            entrance=entrance,
            blobs=blobs,
            runner=runner,
            results=results,
            toolchains=LocalToolchains(clock.now_s),
            sign=_lazily(data / RESULT_SEED),
            clock=clock,
            config=door,
            places=places,
            new_id=lambda: new_id("exe", now_s=clock.now_s()),
        )
    )
    async with serving(
        door.listen,
        [partial(door_pb2_grpc.add_DoorServicer_to_server, servicer)],
        limits=WireLimits(message_bytes_max=_MESSAGE_BYTES_MAX),
        tls=ServerTls(certificate=str(data / CERTIFICATE), key=str(data / KEY)),
        section="worker_door",
        setting="worker_door.listen",
    ) as port:
        address = door.address or join_address(split_address(door.listen)[0], port)
        _log.info("the door is open", address=address)
        async with asyncio.TaskGroup() as group:
            telling = [
                group.create_task(servicer.tell_forever(), name="door:tell"),
                group.create_task(refusals.tell_forever(), name="door:refusals"),
            ]
            try:
                yield OpenDoor(places, entrance, address)
            finally:
                with suppress(TimeoutError):
                    await finish(servicer.wait_told(), within_s=_TOLD_WITHIN_S)
                for each in telling:
                    each.cancel()


def _lazily(seed: Path) -> Callable[[bytes], bytes]:
    """Sign with the key in ``seed``, which is read, with the library for it, by the first signature."""
    keys: list[SigningKey] = []

    def sign(message: bytes) -> bytes:
        if not keys:
            keys.append(SigningKey(bytes.fromhex(seed.read_text().strip())))
        return keys[0].sign(message)

    return sign
