"""A body of one GiB through the front into a function, and out again: how much memory its way takes."""

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Row
from corral.functions.model import Limits
from corral.testing import wasm_programs as programs
from corral.testing.function_rig import FunctionRig, open_rig
from corral.testing.wasm_programs import assemble

_BODY_BYTES = 1 << 30
_PIECE = bytes(256 * 1024)
_BOUND_MIB = 16.0


def measure() -> Sequence[Row]:
    """The peak of the front's memory and of the host's, over what they had before."""
    return asyncio.run(_measure())


async def _measure() -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as name:
        async with open_rig(Path(name)) as rig:
            limits = Limits(body_bytes=2 * _BODY_BYTES, response_bytes=2 * _BODY_BYTES, cpu_s=60, wall_s=120)
            await rig.deploy("echo", await rig.spec(assemble(programs.ECHO), limits=limits))
            assert (await rig.get("/functions/echo", method="POST", body=bytes(1 << 20))).status == 200
            processes = _processes(rig)
            before = {pid: _peak_bytes(pid, anew=True) for pid in processes}
            started_s = time.perf_counter()
            got = await asyncio.to_thread(_send_and_receive, rig.port)
            took_s = time.perf_counter() - started_s
            grown = sum(_peak_bytes(pid) - before[pid] for pid in processes) / 2**20
    assert got >= _BODY_BYTES, got
    return [
        Row(
            what=f"functions: memory of a body of 1 GiB, in and out, front and host ({1024 / took_s:.0f} MiB/s)",
            ours=f"{grown:.1f} MiB",
            against="",
            ratio="",
            bound=f"< {_BOUND_MIB:.0f} MiB",
            ok=grown < _BOUND_MIB,
        )
    ]


def _processes(rig: FunctionRig) -> list[int]:
    hosts = [host.pid for host in rig.host._hosts.values()]
    return [pid for pid in (rig.host.front_pid, *hosts) if pid is not None]


def _peak_bytes(pid: int, *, anew: bool = False) -> int:
    """The most that a process ever had resident; ``anew``: since now."""
    if anew:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _send_and_receive(port: int) -> int:
    """Bytes that came back."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = b"POST /functions/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % _BODY_BYTES)
        sender = threading.Thread(target=_send, args=(connection,))
        sender.start()
        got, room = 0, bytearray(1 << 20)
        while size := connection.recv_into(room):
            got += size
        sender.join()
    return got


def _send(connection: socket.socket) -> None:
    for _ in range(_BODY_BYTES // len(_PIECE)):
        connection.sendall(_PIECE)
