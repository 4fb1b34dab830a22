"""The peer: Dramatiq with Redis, whose actor runs the same command as a subprocess."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:0/0")
dramatiq.set_broker(RedisBroker(url=_URL))
_counter = redis.Redis.from_url(_URL)


@dramatiq.actor(max_retries=0)
def run(command: str) -> None:
    """Run the command and count it."""
    subprocess.run([command], check=True)
    _counter.incr("done")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _started(command: list[str], **options: object) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def rate(count: int, command: str, *, durable: bool) -> float:
    """Tasks per second from the first enqueue to the last result, in a fresh interpreter of its own."""
    port = _free_port()
    url = f"redis://127.0.0.1:{port}/0"
    os.environ["BENCH_REDIS_URL"] = url
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="corral-bench-redis-") as directory:
        server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""]
        server += ["--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
        dramatiq_command = str(Path(sys.executable).parent / "dramatiq")
        with _started(server):
            _wait_for_redis(url)
            with _started(
                [dramatiq_command, "bench.dramatiq_peer", "--processes", "2", "--threads", "4"], cwd=str(here)
            ):
                timed = [sys.executable, "-m", "bench.dramatiq_peer", str(count), command]
                ran = subprocess.run(timed, cwd=here, check=True, stdout=subprocess.PIPE, timeout=300)
    return count / float(ran.stdout)


def _wait_for_redis(url: str) -> None:
    client = redis.Redis.from_url(url)
    for _ in range(500):
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError("redis-server did not start")


def _drive(count: int, command: str) -> float:
    run.send(command)
    while int(_counter.get("done") or 0) < 1:  # the workers are up
        time.sleep(0.01)
    began_s = time.perf_counter()
    for _ in range(count):
        run.send(command)
    while int(_counter.get("done") or 0) < count + 1:
        time.sleep(0.005)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    print(_drive(int(sys.argv[1]), sys.argv[2]))
