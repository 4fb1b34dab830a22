"""Random histories of a disk store that two hold, with crashes: no partial or wrong blob is ever seen, none is lost
unevicted, and none is believed to be there that the other removed."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, QuotaExceeded
from corral.testing.blob_contract import content_of, in_pieces
from corral.testing.clocks import HandClock

CONTENTS = [content_of(size, seed=seed) for seed, size in enumerate((0, 1, 5000, 65_536, 65_537, 200_000))]
BUDGET_BYTES = 250_000
QUOTA_BYTES = 280_000
GRACE_S = 60.0
TENANTS = ("ann", "bob")

contents = st.sampled_from(CONTENTS)
holders = st.integers(0, 1)  # which of the two stores on the folder is asked
tenants = st.sampled_from(TENANTS)


class DiskHistories(RuleBasedStateMachine):
    """``held`` is what must be there, with the last use that a store may have on record at the earliest."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="corral-blobs-"))
        self.clock = HandClock()
        self.held: dict[tuple[str, Digest], float] = {}
        self.stores = [self._open(), self._open()]

    @rule(by=holders, tenant=tenants, data=contents, cut=st.integers(0, 70_000))
    def write(self, by: int, tenant: str, data: bytes, cut: int) -> None:
        digest = Digest.of(data)
        full = self._sum(tenant) + len(data) > QUOTA_BYTES and (tenant, digest) not in self.held
        try:
            content = in_pieces(data, (cut,)) if cut else pieces_of(data)
            self._run(by, lambda store: store.write(tenant, digest, content))
        except QuotaExceeded:
            assert full
        else:
            assert not full
            self.held[tenant, digest] = self.clock.at_s

    @rule(by=holders, tenant=tenants, data=contents, wrong=contents)
    def write_wrong(self, by: int, tenant: str, data: bytes, wrong: bytes) -> None:
        digest = Digest.of(data)
        if wrong == data or (tenant, digest) in self.held:
            return
        try:
            self._run(by, lambda store: store.write(tenant, digest, pieces_of(wrong)))
        except (InvalidSpec, QuotaExceeded):
            return
        raise AssertionError("wrong content was taken")

    @rule(by=holders, tenant=tenants, data=contents)
    def read(self, by: int, tenant: str, data: bytes) -> None:
        digest = Digest.of(data)

        async def collect(store: DiskBlobs) -> bytes:
            return b"".join([piece async for piece in store.read(tenant, digest)])

        try:
            found = self._run(by, collect)
        except NotFound:
            assert (tenant, digest) not in self.held
        else:
            assert (tenant, digest) in self.held
            assert found == data
            self.held[tenant, digest] = self.clock.at_s

    @rule(by=holders, tenant=tenants)
    def find(self, by: int, tenant: str) -> None:
        digests = [Digest.of(data) for data in CONTENTS]
        missing = self._run(by, lambda store: store.find_missing(tenant, digests))
        for digest in digests:
            assert (digest in missing) == ((tenant, digest) not in self.held)
            if digest not in missing:
                self.held[tenant, digest] = self.clock.at_s

    @rule(by=holders, tenant=tenants, data=contents)
    def delete(self, by: int, tenant: str, data: bytes) -> None:
        self._run(by, lambda store: store.delete(tenant, [Digest.of(data)]))
        self.held.pop((tenant, Digest.of(data)), None)

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0, 5000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.at_s += seconds

    @rule(by=holders)
    def clean(self, by: int) -> None:
        before = dict(self.held)
        report = self._run(by, lambda store: store.clean(now_s=self.clock.at_s))
        for (tenant, digest), used_s in before.items():
            there = next(self.root.glob(f"blobs/{tenant}/*/b3-{digest.hash}-*"), None) is not None
            if not there:
                assert self.clock.at_s - used_s > GRACE_S - 15, "evicted although it was used just now"
                del self.held[tenant, digest]
        assert report.evicted_blobs == len(before) - len(self.held)
        assert report.left.total_bytes == sum(digest.size_bytes for _tenant, digest in self.held)
        idle = [key for key, used_s in self.held.items() if self.clock.at_s - used_s > GRACE_S]
        if idle:
            assert report.left.total_bytes <= BUDGET_BYTES

    @rule(data=contents, share=st.floats(0, 1))
    def crash_while_writing(self, data: bytes, share: float) -> None:
        """The process dies midway: its lock is gone, its half-written file stays, nobody cleans up after it."""
        digest = Digest.of(data)
        if ("ann", digest) not in self.held and self._sum("ann") + len(data) <= QUOTA_BYTES:
            upload = self.stores[0]._files.new_upload("ann", digest)
            upload.begin(None)
            upload.append([data[: int(len(data) * share)]])
        self.restart()

    @rule()
    def restart(self) -> None:
        lock = self.stores[0]._files._own_lock
        self.stores[0]._files._own_lock = -1  # a dead process does not tidy up, but the kernel lets its lock go
        os.close(lock)
        self.stores[0]._threads.shutdown()
        self.stores[0] = self._open()

    @invariant()
    def what_is_accounted_is_what_is_there(self) -> None:
        for tenant in TENANTS:
            usage = self.stores[1]._files.usage(tenant)
            assert usage.total_bytes == self._sum(tenant)
            assert usage.blobs == sum(owner == tenant for owner, _digest in self.held)

    def teardown(self) -> None:
        for store in self.stores:
            asyncio.run(store.__aexit__(None, None, None))
        shutil.rmtree(self.root)

    def _sum(self, tenant: str) -> int:
        return sum(digest.size_bytes for owner, digest in self.held if owner == tenant)

    def _open(self) -> DiskBlobs:
        store = DiskBlobs(
            self.root,
            limits=StoreLimits(total_bytes=BUDGET_BYTES, age_s=4000.0, tenant_bytes=QUOTA_BYTES),
            grace_s=GRACE_S,
            threads=1,
            clock=self.clock,
        )
        asyncio.run(store.__aenter__())
        return store

    def _run(self, by: int, work: Callable[[DiskBlobs], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(work(self.stores[by]))


TestDiskHistories = DiskHistories.TestCase
TestDiskHistories.settings = settings(max_examples=20, stateful_step_count=25, derandomize=True, deadline=None)
