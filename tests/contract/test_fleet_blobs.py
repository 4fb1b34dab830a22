"""The scheduler's blobs, seen through the wire, pass the contract of every store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.model import StoreLimits
from corral.blobs.ports import BlobStore
from corral.fleet.adapters.blobs import BlobsServicer, SchedulerBlobs
from corral.fleet.adapters.grpc_link import LinkConfig, SchedulerLink
from corral.fleet.adapters.grpc_server import FleetServicer, serving
from corral.fleet.adapters.memory import MemoryWorkerTable
from corral.fleet.model import Capacity, Registration, RunRef, WorkerState
from corral.fleet.ports import QueueHooks
from corral.fleet.service import Fleet
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import StoreUnavailable
from corral.testing.blob_contract import (
    BLOB_LIMIT_BYTES,
    TENANT_QUOTA_BYTES,
    BlobStoreContract,
    content_of,
    in_pieces,
    read_all,
)
from corral.wire.transport import WireLimits
from corral.wire.v1 import fleet_pb2_grpc


async def nothing(worker_id: str) -> Sequence[RunRef]:
    return ()


@asynccontextmanager
async def over_the_wire(store: BlobStore) -> AsyncIterator[SchedulerBlobs]:
    hooks = QueueHooks(worker_lost=nothing, desired_cancels=nothing, aborts=Signal())
    fleet = Fleet(MemoryWorkerTable(), SystemClock(), hooks, lambda token, actor="": None)

    def add(server: grpc.aio.Server) -> None:
        fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(fleet, "sch_1"), server)
        fleet_pb2_grpc.add_BlobsServicer_to_server(BlobsServicer(store, fleet.session), server)

    async with serving("127.0.0.1:0", [add], limits=WireLimits()) as port, asyncio.TaskGroup() as group:
        link = SchedulerLink(
            f"127.0.0.1:{port}",
            "token",
            Registration(worker_id="wrk_a", instance="one", capacity=Capacity(slots=1)),
            state=lambda: WorkerState(slots_free=1),
            on_desired=lambda desired: None,
            config=LinkConfig(retry_min_s=0.02),
        )
        running = group.create_task(link.run())
        await link.wait_session()
        try:
            yield SchedulerBlobs(link)
        finally:
            running.cancel()


class TestSchedulerBlobs(BlobStoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        async with over_the_wire(MemoryBlobs()) as store:
            yield store

    @pytest.fixture
    async def bounded_store(self) -> AsyncIterator[BlobStore]:
        bounds = StoreLimits(blob_bytes=BLOB_LIMIT_BYTES, tenant_bytes=TENANT_QUOTA_BYTES)
        async with over_the_wire(MemoryBlobs(limits=bounds)) as store:
            yield store


async def test_a_store_out_of_reach_says_so_at_once() -> None:
    async with over_the_wire(MemoryBlobs()) as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.find_missing("ann", [Digest.of(b"x")])


async def test_a_large_blob_passes_both_ways() -> None:
    data = content_of(20 * 1024 * 1024 + 17)
    async with over_the_wire(MemoryBlobs()) as store:
        digest = Digest.of(data)
        await store.write("ann", digest, in_pieces(data, (1024 * 1024,)))

        assert await read_all(store, "ann", digest) == data
