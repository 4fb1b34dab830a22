"""Deployments on a disk without a free byte: a clear error, nothing half done, and what is deployed goes on."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.blobs.content import pieces_of
from corral.client import Corral, DeployRequest
from corral.kernel.digest import Digest
from corral.kernel.errors import CapacityError, CorralError, DependencyError
from corral.testing.function_load import printing
from corral.testing.processes import CorralProcess, public_directory, why_no_agent

DISK_BYTES = 64 * 1024 * 1024

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed"),
]


@pytest.fixture
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        (home / "data").mkdir()
        mount = f'mount -t tmpfs -o size={DISK_BYTES},mode=711 none {home / "data"} && exec "$@"'
        process = CorralProcess(
            *("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0"),
            *("engine.front.listen=127.0.0.1:0", "reapi.address="),
            wrapper=("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"),
        )
        try:
            process.start()
            yield process
        finally:
            process.stop()


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


async def deploy(corral: Corral, revision: str) -> None:
    program = printing(revision)
    await corral.blobs.write("", Digest.of(program), pieces_of(program))
    request = DeployRequest(module=str(Digest.of(program)), default=True, env={"PADDING": "x" * 30_000})
    await corral.functions.deploy("hello", revision, request)


async def answers(corral: Corral) -> str:
    async with corral.functions.call(await corral.functions.get("hello")) as answer:
        return f"{answer.status} {answer.revision}"


async def test_a_full_disk_refuses_deployments_in_one_sentence_and_disturbs_nobody(up: CorralProcess) -> None:
    ballast = Path(f"/proc/{up.process.pid}/root") / up.data.relative_to("/") / "ballast"
    async with Corral(up.url) as corral:
        await deploy(corral, "v1")
        assert await answers(corral) == "200 v1"
        before = await corral.functions.get("hello")
        fill(ballast)

        refused: CorralError | None = None
        for number in range(20):
            try:
                await deploy(corral, f"full-{number}")
                fill(ballast)
            except CorralError as error:
                refused = error
                break

        assert isinstance(refused, CapacityError | DependencyError), refused
        assert "Traceback" not in refused.message
        serving = (await corral.functions.get("hello")).default
        assert await answers(corral) == f"200 {serving}"
        ballast.unlink()
        await deploy(corral, "v2")
        assert await answers(corral) == "200 v2"
        history = await corral.functions.history("hello")

    assert history.changes[-1].version == before.version
    assert [each.version for each in history.changes] == list(range(len(history.changes), 0, -1))
