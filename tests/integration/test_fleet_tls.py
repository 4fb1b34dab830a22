"""TLS between scheduler and worker, with certificates made here: pinned, from a CA, both ways, and refused."""

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from corral.fleet.adapters.grpc_link import LinkConfig, SchedulerLink
from corral.fleet.adapters.grpc_server import FleetServicer, serving
from corral.fleet.adapters.memory import MemoryWorkerTable
from corral.fleet.model import Capacity, Registration, RunRef, WorkerState
from corral.fleet.ports import QueueHooks
from corral.fleet.service import Fleet
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.testing.certificates import Identity, issue
from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    wait_until,
    why_no_agent,
)
from corral.wire.certificates import fingerprint_of
from corral.wire.transport import ClientTls, ServerTls, WireLimits
from corral.wire.v1 import fleet_pb2_grpc

pytestmark = pytest.mark.timeout(180)
needs_agent = pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent")


@dataclass
class Certificates:
    """A CA with a scheduler and a worker; a scheduler of its own making; and another CA."""

    ca: Identity
    scheduler: Identity
    worker: Identity
    own: Identity
    stranger: Identity


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ca = issue(folder, "our-ca", ca=True)
    return Certificates(
        ca=ca,
        scheduler=issue(folder, "scheduler", by=ca),
        worker=issue(folder, "worker", by=ca),
        own=issue(folder, "own-making"),
        stranger=issue(folder, "strangers-ca", ca=True),
    )


def shown(identity: Identity, *, client_ca: Identity | None = None) -> ServerTls:
    return ServerTls(
        certificate=str(identity.crt), key=str(identity.key), client_ca=str(client_ca.crt) if client_ca else ""
    )


async def no_cancels(worker_id: str) -> tuple[RunRef, ...]:
    return ()


async def nothing(worker_id: str) -> None:
    return None


@asynccontextmanager
async def link_to(server: ServerTls | None, client: ClientTls) -> AsyncIterator[SchedulerLink]:
    """A worker's link that is trying to reach a scheduler."""
    hooks = QueueHooks(worker_lost=nothing, desired_cancels=no_cancels, aborts=Signal())
    fleet = Fleet(MemoryWorkerTable(), SystemClock(), hooks, lambda token, *, actor="": None)
    add = partial(fleet_pb2_grpc.add_FleetServicer_to_server, FleetServicer(fleet, "sch_1"))
    async with serving("127.0.0.1:0", [add], limits=WireLimits(), tls=server) as port, asyncio.TaskGroup() as group:
        link = SchedulerLink(
            f"127.0.0.1:{port}",
            "token",
            Registration(worker_id="wrk_a", instance="one", capacity=Capacity(slots=1)),
            state=lambda: WorkerState(slots_free=1),
            on_desired=lambda desired: None,
            config=LinkConfig(connect_s=2.0, retry_min_s=0.02, retry_max_s=0.1, tls=client),
        )
        running = group.create_task(link.run())
        try:
            yield link
        finally:
            running.cancel()


async def connects(server: ServerTls | None, client: ClientTls) -> None:
    async with link_to(server, client) as link, asyncio.timeout(20):
        await link.wait_session()


async def trouble(server: ServerTls | None, client: ClientTls) -> str:
    async with link_to(server, client) as link, asyncio.timeout(20):
        while not link.trouble:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        assert not link.connected
        return link.trouble


async def test_a_certificate_of_the_schedulers_own_making_is_trusted_by_its_fingerprint(
    certificates: Certificates,
) -> None:
    own = certificates.own
    with_colons = ":".join(own.fingerprint[at : at + 2].upper() for at in range(0, 64, 2))

    await connects(shown(own), ClientTls(fingerprint=own.fingerprint))
    await connects(shown(own), ClientTls(fingerprint=with_colons))

    assert fingerprint_of(own.crt) == own.fingerprint


async def test_a_certificate_of_a_ca_is_trusted_by_the_ca_or_by_its_fingerprint(certificates: Certificates) -> None:
    await connects(shown(certificates.scheduler), ClientTls(ca=str(certificates.ca.crt)))
    await connects(shown(certificates.scheduler), ClientTls(fingerprint=certificates.scheduler.fingerprint))


async def test_another_certificate_than_the_pinned_one_is_refused_and_named(certificates: Certificates) -> None:
    said = await trouble(shown(certificates.own), ClientTls(fingerprint=certificates.scheduler.fingerprint))

    assert "another certificate than the pinned one" in said
    assert certificates.own.fingerprint in said


async def test_a_certificate_of_another_ca_is_refused(certificates: Certificates) -> None:
    assert await trouble(shown(certificates.scheduler), ClientTls(ca=str(certificates.stranger.crt)))


async def test_a_certificate_that_names_nobody_says_so(tmp_path: Path) -> None:
    nameless = issue(tmp_path, "nameless", names=False)

    with pytest.raises(BaseExceptionGroup) as caught:
        await trouble(shown(nameless), ClientTls(fingerprint=nameless.fingerprint))

    assert "subjectAltName" in str(caught.value.exceptions[0])


async def test_a_scheduler_that_asks_workers_for_certificates_takes_only_those_of_its_ca(
    certificates: Certificates,
) -> None:
    server = shown(certificates.scheduler, client_ca=certificates.ca)
    worker, own = certificates.worker, certificates.own
    ca = str(certificates.ca.crt)

    await connects(server, ClientTls(ca=ca, certificate=str(worker.crt), key=str(worker.key)))
    assert await trouble(server, ClientTls(ca=ca))
    assert await trouble(server, ClientTls(ca=ca, certificate=str(own.crt), key=str(own.key)))


async def test_plain_text_does_not_reach_a_scheduler_with_tls(certificates: Certificates) -> None:
    assert await trouble(shown(certificates.own), ClientTls())


async def test_tls_does_not_reach_a_scheduler_in_plain_text(certificates: Certificates) -> None:
    assert "no certificate is shown" in await trouble(None, ClientTls(fingerprint=certificates.own.fingerprint))


# ------------------------------------------------------------------------------------------------ as people start it


def refused(tmp_path: Path, role: str, *settings: str) -> str:
    command = [sys.executable, "-m", "corral", role, "--data-dir", str(tmp_path / "data")]
    for each in settings:
        command += ["--set", each]
    done = subprocess.run(
        command, env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_scheduler_that_others_can_reach_refuses_to_speak_plain_text(tmp_path: Path) -> None:
    said = refused(
        *(tmp_path, "scheduler", "scheduler.grpc=0.0.0.0:0", "scheduler.http=127.0.0.1:0"),
        "access.worker_tokens=worker-token-0123456789",
    )

    assert "0.0.0.0:0 can be reached from other machines" in said
    for setting in ("tls.certificate", "tls.key", "tls.plain"):
        assert setting in said


def test_a_scheduler_that_others_can_reach_needs_a_worker_token(tmp_path: Path, certificates: Certificates) -> None:
    own = certificates.own
    said = refused(
        *(tmp_path, "scheduler", "scheduler.grpc=0.0.0.0:0", "scheduler.http=127.0.0.1:0"),
        *(f"tls.certificate={own.crt}", f"tls.key={own.key}"),
    )

    assert "access.worker_tokens" in said


def test_half_a_certificate_is_refused_by_name(tmp_path: Path, certificates: Certificates) -> None:
    assert "tls: certificate and key" in refused(tmp_path, "scheduler", f"tls.certificate={certificates.own.crt}")
    assert "tls.key" in refused(
        *(tmp_path, "scheduler", "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0"),
        *(f"tls.certificate={certificates.own.crt}", "tls.key=/does/not/exist"),
    )


@needs_agent
def test_a_worker_refuses_plain_text_to_another_machine(tmp_path: Path) -> None:
    with public_directory() as home:
        said = refused(home, "worker", "join.scheduler=192.0.2.1:7071")

    for setting in ("join.link.tls.fingerprint", "join.link.tls.ca", "join.link.tls.plain"):
        assert setting in said


@pytest.fixture(scope="module")
def up(certificates: Certificates) -> Iterator[CorralProcess]:
    own = certificates.own
    http, grpc = fixed_addresses()
    with public_directory() as home:
        process = CorralProcess(
            *("up", home, http, grpc.replace("127.0.0.1", "0.0.0.0")),
            *(f"tls.certificate={own.crt}", f"tls.key={own.key}"),
        )
        try:
            process.start()
            yield process
        finally:
            process.stop()


def get(process: CorralProcess, path: str) -> Any:
    return httpx.get(f"{process.url}/api/v1{path}", trust_env=False, timeout=30).raise_for_status().json()


@needs_agent
def test_up_with_tls_pins_its_own_scheduler(up: CorralProcess) -> None:
    body = {"payload": {"command": ["true"]}}
    answer = httpx.post(f"{up.url}/api/v1/tasks", json=body, trust_env=False, timeout=30)
    task_id = answer.raise_for_status().json()["id"]

    wait_until(lambda: get(up, f"/tasks/{task_id}")["phase"] == "completed", "the task", log=up.log)


@needs_agent
def test_a_worker_keeps_a_certificate_of_its_own_and_registers_its_fingerprint(up: CorralProcess) -> None:
    certificate, key = up.data / "worker.crt", up.data / "worker.key"
    worker = get(up, "/workers")["workers"][0]
    made = x509.load_pem_x509_certificate(certificate.read_bytes())

    assert worker["certificate_fingerprint"] == made.fingerprint(hashes.SHA256()).hex()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (certificate, key)] == [0o600, 0o600]
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert private.public_key() == made.public_key()
    made.verify_directly_issued_by(made)


@needs_agent
def test_a_worker_keeps_its_certificate_over_a_restart_and_never_loads_the_library_that_made_it(
    up: CorralProcess,
) -> None:
    before = get(up, "/workers")["workers"][0]
    first = up.child("worker")
    assert first is not None

    first.kill()

    def is_back() -> bool:
        worker = get(up, "/workers")["workers"][0]
        return bool(worker["state"] == "ready" and worker["registered_s"] > before["registered_s"])

    wait_until(is_back, "the next worker", log=up.log)
    second = up.child("worker")
    assert second is not None
    maps = Path(f"/proc/{second.pid}/maps").read_text()
    assert "cygrpc" in maps
    assert "cryptography" not in maps
    assert get(up, "/workers")["workers"][0]["certificate_fingerprint"] == before["certificate_fingerprint"]
