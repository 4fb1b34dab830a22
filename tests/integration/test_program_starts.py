"""Programs that a process of ours starts while it speaks gRPC: each of them runs, none crashes before it begins."""

import os
import subprocess
import sys

from corral.app.launch import ENVIRONMENT

_STARTS = 300
_SCRIPT = f"""
import asyncio, os, grpc, uvloop

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    call = grpc.aio.insecure_channel(f"127.0.0.1:{{port}}").unary_unary("/no/such")

    async def speak():
        while True:
            try:
                await call(b"")
            except grpc.aio.AioRpcError:
                pass

    speaking = [asyncio.ensure_future(speak()) for _ in range(8)]
    crashed = 0
    for _ in range({_STARTS}):
        process = await asyncio.create_subprocess_exec("/bin/true")
        crashed += await process.wait() != 0
    print(crashed, flush=True)
    os._exit(0)

uvloop.run(main())
"""


def test_no_program_crashes_because_grpc_runs_beside_its_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == "0\n"
