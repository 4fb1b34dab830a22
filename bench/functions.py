"""Functions: requests per second of a fresh instance each, beside workerd and `wasmtime serve`; the front's share;
deploying; and a neighbour under attack.

All servers get the same load by `wrk`, one after the other, several rounds; the best round of each counts. The peers
run the same: workerd instantiates the same module for each request, `wasmtime serve` a component that says the same.
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import Row, at_most, bounded, p50
from corral.functions.engine.programs import find_parts
from corral.functions.model import Limits
from corral.testing import wasm_programs as programs
from corral.testing.function_rig import FunctionRig, open_rig
from corral.testing.wasm_component import HELLO_COMPONENT
from corral.testing.wasm_programs import assemble

ROUNDS = 3
LOAD_S = 3
CONNECTIONS = 16
NEIGHBOUR_ROUNDS = 3
PACE = 400
ATTACKS = {"spin": 8, "grow": 8, "flood": 8, "hello": 256}
"""What the other tenant's clients ask for, and on how many connections: the last is a flood of requests."""
_MODULE_FUNCTIONS = 400  # one MiB of code

WORKER = """
import program from "hello.wasm";
export default { async fetch() {
  let printed = new Uint8Array(0), instance;
  const view = () => new DataView(instance.exports.memory.buffer);
  const wasi = { fd_write(fd, vectors, count, result) {
    const at = view().getUint32(vectors, true), size = view().getUint32(vectors + 4, true);
    printed = new Uint8Array(instance.exports.memory.buffer.slice(at, at + size));
    view().setUint32(result, size, true);
    return 0;
  } };
  const other = () => 52;
  const imports = { wasi_snapshot_preview1: new Proxy(wasi, { get: (known, name) => known[name] ?? other }) };
  instance = await WebAssembly.instantiate(program, imports);
  instance.exports._start();
  return new Response(printed.slice(28), { headers: { "content-type": "text/plain" } });
} };
"""
CONFIG = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "w.js", esModule = embed "w.js"), (name = "hello.wasm", wasm = embed "hello.wasm")],
    compatibilityDate = "2026-01-01"))],
  sockets = [(name = "http", address = "127.0.0.1:PORT", http = (), service = "main")]);
"""
BARE = """
import asyncio, httptools, sys, uvloop
class Hello(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.parser = transport, httptools.HttpRequestParser(self)
    def data_received(self, data): self.parser.feed_data(data)
    def on_message_complete(self):
        head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 13\\r\\n\\r\\n"
        self.transport.write(head + b"hello, world\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Hello, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
uvloop.run(main())
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_s: float
    p50_s: float
    p99_s: float
    failed: int


def measure() -> Sequence[Row]:
    """All of it, on one rig."""
    return asyncio.run(_measure())


async def _measure() -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as name:
        top = Path(name)
        async with open_rig(top / "ours") as rig:
            return [*await _hello(rig, top), *await _deploying(rig), *await _neighbour(rig)]


async def _hello(rig: FunctionRig, top: Path) -> list[Row]:
    await rig.deploy("hello", await rig.spec(assemble(programs.hello()), limits=Limits(concurrency=64)))
    ours = f"http://127.0.0.1:{rig.port}/functions/hello"
    async with _bare(top) as bare, _workerd(top) as workerd, _serve(top) as serve:
        many, one = await _rounds({"ours": ours, "workerd": workerd, "serve": serve, "bare": bare})
    rows = []
    for peer, name in (("workerd", "workerd, instantiating for each"), ("serve", "wasmtime serve, pooling")):
        if peer not in many:
            rows.append(_absent(f"functions: hello, {name}"))
            continue
        rate, theirs = many["ours"].per_s, many[peer].per_s
        rows.append(
            Row(
                what=f"functions: hello with a fresh instance, {CONNECTIONS} connections",
                ours=f"{rate:.0f}/s",
                against=f"{name} {theirs:.0f}/s",
                ratio=f"{rate / theirs:.2f} ×",
                bound="≥ 1 ×",
                ok=rate >= theirs and not many["ours"].failed,
            )
        )
    what = "functions: hello at one connection, p50"
    rows.append(at_most(what, one["ours"].p50_s, "bare HTTP hello", one["bare"].p50_s, plus_s=0.0005))
    return rows


async def _rounds(servers: dict[str, str]) -> tuple[dict[str, Load], dict[str, Load]]:
    many: dict[str, Load] = {}
    one: dict[str, Load] = {}
    for _ in range(ROUNDS):
        for name, url in servers.items():
            if not url:
                continue
            seen = await _wrk(url, CONNECTIONS, LOAD_S)
            if name not in many or seen.per_s > many[name].per_s:
                many[name] = seen
            seen = await _wrk(url, 1, 1)
            if name not in one or seen.p50_s < one[name].p50_s:
                one[name] = seen
    return many, one


async def _deploying(rig: FunctionRig) -> list[Row]:
    program = assemble(programs.wide(_MODULE_FUNCTIONS))
    started_s = time.perf_counter()
    spec = await rig.spec(program)
    await rig.deploy("large", spec)
    assert (await rig.get("/functions/large")).status == 200
    cold_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    await rig.deploy("again", spec)
    assert (await rig.get("/functions/again")).status == 200
    warm_s = time.perf_counter() - started_s
    size = f"{len(program) / 2**20:.1f} MiB"
    return [
        bounded(f"functions: worker gets a module of {size}, compiles, first answer", cold_s, 1.0),
        bounded("functions: the same from the cache of compiled code", warm_s, 0.02),
    ]


async def _neighbour(rig: FunctionRig) -> list[Row]:
    victim = await rig.spec(assemble(programs.hello()), tenant="victim")
    await rig.deploy("hello", victim, tenant="victim")
    spin = Limits(cpu_s=1.0, wall_s=5.0, concurrency=64)
    hostile = {"spin": programs.SPIN, "grow": programs.GROW, "flood": programs.FLOOD, "hello": programs.hello()}
    for name, program in hostile.items():
        await rig.deploy(name, await rig.spec(assemble(program), tenant="hostile", limits=spin), tenant="hostile")
    base = f"http://127.0.0.1:{rig.port}/tenants"
    rows = []
    for name, connections in ATTACKS.items():
        alone, beside = [], []
        for _ in range(NEIGHBOUR_ROUNDS):  # in turns, so that both see the same machine
            alone.append(await _paced_p99(rig.port, "/tenants/victim/functions/hello"))
            async with asyncio.TaskGroup() as group:
                attack = group.create_task(_wrk(f"{base}/hostile/functions/{name}", connections, LOAD_S + 2))
                await asyncio.sleep(1)
                beside.append(await _paced_p99(rig.port, "/tenants/victim/functions/hello"))
                await attack
        what = f"functions: p99 of a tenant at {PACE}/s beside another one's {name}, {connections} at once, no pause"
        rows.append(at_most(what, p50(beside), "alone", p50(alone), times=2.0))
    return rows


async def _paced_p99(port: int, path: str) -> float:
    """Of a victim that asks at a pace of its own: one that asks as fast as it can competes with itself."""
    command = [sys.executable, "-m", "bench.paced_client", "127.0.0.1", str(port), path, str(PACE), str(LOAD_S)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    _, p99_s, failed = (await process.communicate())[0].split()
    return float(p99_s) if failed == b"0" else float("inf")


async def _wrk(url: str, connections: int, seconds: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "--latency", url]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    failed = sum(
        int(each) for each in re.findall(r"(?:Non-2xx or 3xx responses: |connect |read |write |timeout )(\d+)", text)
    )
    rate = re.search(r"Requests/sec:\s*([0-9.]+)", text)
    return Load(float(rate[1]) if rate else 0.0, _seconds(text, "50%"), _seconds(text, "99%"), failed)


def _seconds(text: str, part: str) -> float:
    found = re.search(rf"{part}\s+([0-9.]+)(us|ms|s)\b", text)
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else float("inf")


def _absent(what: str) -> Row:
    return Row(what=what, ours="", against="not installed here", ratio="", bound="", ok=None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _peer(argv: Sequence[str], port: int) -> AsyncIterator[str]:
    """A server of somebody else, from when it answers until the block is left."""
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _bare(top: Path) -> AsyncIterator[str]:
    port = _free_port()
    (top / "bare.py").write_text(BARE)
    async with _peer([sys.executable, str(top / "bare.py"), str(port)], port) as url:
        yield url


@asynccontextmanager
async def _serve(top: Path) -> AsyncIterator[str]:
    command = find_parts().wasmtime
    if not command:
        yield ""
        return
    port, program = _free_port(), top / "hello_component.wasm"
    program.write_bytes(assemble(HELLO_COMPONENT))
    flags = ["-C", "cache=n", "-O", "pooling-allocator", "--max-instance-reuse-count", "1"]
    async with _peer([*command, "serve", *flags, "--addr", f"127.0.0.1:{port}", str(program)], port) as url:
        yield url


@asynccontextmanager
async def _workerd(top: Path) -> AsyncIterator[str]:
    program = await asyncio.to_thread(_find_workerd, top)
    if program is None:
        yield ""
        return
    port, home = _free_port(), top / "workerd"
    home.mkdir()
    (home / "w.js").write_text(WORKER)
    (home / "hello.wasm").write_bytes(assemble(programs.hello()))
    (home / "config.capnp").write_text(CONFIG.replace("PORT", str(port)))
    async with _peer([program, "serve", str(home / "config.capnp")], port) as url:
        yield url


def _find_workerd(top: Path) -> str | None:
    """``WORKERD``, one on the path, or the npm package, which is fetched for this run."""
    known = os.environ.get("WORKERD") or shutil.which("workerd")
    if known or not shutil.which("npm"):
        return known
    command = ["npm", "install", "--silent", "--no-save", "--prefix", str(top / "npm"), "workerd"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    except (subprocess.SubprocessError, OSError):
        return None
    found = list((top / "npm").glob("node_modules/@cloudflare/workerd-*/bin/workerd"))
    return str(found[0]) if found else None
