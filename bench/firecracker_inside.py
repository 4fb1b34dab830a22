"""The half of ``bench.firecracker`` that runs in the emulated machine; it prints its figures, in seconds, as JSON."""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median

from corral.kernel.clock import SystemClock
from corral.sandboxes.guest.greeting import ENTROPY_BYTES, Go, send_go, wait_hello
from corral.sandboxes.guest.kit import open_kit
from corral.sandboxes.link import Link, Setup
from corral.sandboxes.model import MIB, ExecRequest, SandboxSpec, Size
from corral.sandboxes.runtimes.firecracker import FirecrackerRuntime
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.firecracker_jail import HOST_PORT
from corral.sandboxes.runtimes.firecracker_machine import BOOT_ARGS, Machine
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.sandbox import Sandbox

_KIT = Path("/give/kit")
_PROGRAMS = Path("/give/firecracker")
_ROOT = "/give/image/root"
_SIZE = Size(memory_bytes=128 * MIB, cpus=1.0, disk_bytes=16 * MIB)
_TRUE = ExecRequest(argv=("/bin/true",))
_ROUNDS = 3
_EXECS = 20
_PATIENCE_S = 60.0


async def _bare() -> float:
    """Firecracker as one would start it by hand: no jail, no control group, the same kernel, disk and memory."""
    kit = await asyncio.to_thread(open_kit, _KIT)
    machine = Machine(program="", kit=kit, root=Path("/"), root_identity="", size=_SIZE, boot_args=BOOT_ARGS)
    with tempfile.TemporaryDirectory() as folder:
        uds = f"{folder}/v.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{uds}_{HOST_PORT}")
        listener.listen()
        listener.setblocking(False)
        document = {
            "boot-source": {
                "kernel_image_path": str(kit.kernel),
                "initrd_path": str(kit.initrd),
                "boot_args": machine.boot_source.boot_args,
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": machine.memory_mib},
            "drives": [
                {
                    "drive_id": "root",
                    "path_on_host": "/give/image/root.squashfs",
                    "is_root_device": False,
                    "is_read_only": True,
                }
            ],
            "vsock": {"guest_cid": 3, "uds_path": uds},
        }
        await asyncio.to_thread(Path(folder, "machine.json").write_text, json.dumps(document))
        began_s = time.perf_counter()
        command = [str(_PROGRAMS / "firecracker"), "--no-api", "--config-file", f"{folder}/machine.json"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            await wait_hello(connection)
            entropy, now_s = os.urandom(ENTROPY_BYTES), SystemClock().now_s()
            await send_go(connection, Go(unix_s=now_s, entropy=entropy, host_name="bare", memory_bytes=0, processes=0))
            link = await Link.open(connection, Setup(), within_s=_PATIENCE_S)
            took_s = time.perf_counter() - began_s
            link.close()
            return took_s
        finally:
            process.kill()
            process.wait()
            listener.close()


async def _timed(action: Awaitable[object]) -> float:
    began_s = time.perf_counter()
    await action
    return time.perf_counter() - began_s


def _spec(name: str) -> SandboxSpec:
    return SandboxSpec(id=f"sbx_{name}", tenant="bench", root=_ROOT, size=_SIZE)


def _runtime(home: Home, *, templates: bool) -> FirecrackerRuntime:
    config = FirecrackerConfig(
        firecracker=str(_PROGRAMS / "firecracker"),
        jailer=str(_PROGRAMS / "jailer"),
        templates=templates,
        probe_within_s=_PATIENCE_S,
        boot_within_s=_PATIENCE_S,
    )
    return FirecrackerRuntime(home, config, kits=_KIT, start_within_s=_PATIENCE_S)


async def main() -> None:
    """Boots in turns, then copies, execs, and a frost."""
    figures: dict[str, list[float]] = {name: [] for name in ("bare", "boot", "clone", "exec", "freeze", "thaw")}
    with Home(Path("/scratch/sandboxes")) as home:
        booting = _runtime(home, templates=False)
        for number in range(_ROUNDS):
            figures["bare"].append(await _bare())
            began_s = time.perf_counter()
            box = await booting.start(_spec(f"boot{number}"))
            figures["boot"].append(time.perf_counter() - began_s)
            await box.stop()
        booting.close()
        copying = _runtime(home, templates=True)
        await (await copying.start(_spec("first"))).stop()  # makes the template
        for number in range(_ROUNDS):
            began_s = time.perf_counter()
            box = await copying.start(_spec(f"copy{number}"))
            figures["clone"].append(time.perf_counter() - began_s)
            sandbox = Sandbox(box)
            await sandbox.exec(_TRUE)
            figures["exec"] += [await _timed(sandbox.exec(_TRUE)) for _ in range(_EXECS)]
            began_s = time.perf_counter()
            snapshot = await copying.snapshot(box)
            figures["freeze"].append(time.perf_counter() - began_s)
            began_s = time.perf_counter()
            thawed = await copying.restore(snapshot, _spec(f"thawed{number}"))
            figures["thaw"].append(time.perf_counter() - began_s)
            await thawed.stop()
            await copying.forget(snapshot)
        copying.close()
    print(json.dumps({name: median(samples) for name, samples in figures.items()}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
