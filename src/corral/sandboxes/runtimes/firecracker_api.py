"""One typed client of Firecracker's API: HTTP/1.1 over the unix socket of one machine monitor.

The shapes are those of Firecracker 1.12 (``src/firecracker/swagger/firecracker.yaml``), as far as boxes need them.
The monitor serves one request at a time, in order; so does this client.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from corral.kernel.errors import SandboxFailed

_HEAD_BYTES_MAX: Final = 16_384
_BODY_BYTES_MAX: Final = 65_536
_POLL_S: Final = 0.002
_OK: Final = range(200, 300)


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /machine-config. ``mem_size_mib`` in MiB; ``track_dirty_pages`` would allow differential snapshots."""

    vcpu_count: int
    mem_size_mib: int
    smt: bool = False
    track_dirty_pages: bool = False


class BootSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """PUT /boot-source. Paths are those that the monitor sees, in its jail."""

    kernel_image_path: str
    boot_args: str
    initrd_path: str | None = None


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /drives/{drive_id}."""

    drive_id: str
    path_on_host: str
    is_root_device: bool
    is_read_only: bool


class Vsock(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /vsock. A guest that calls port P of the host reaches whoever listens at ``<uds_path>_P``."""

    guest_cid: int
    uds_path: str


class SnapshotFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /snapshot/create, of a paused machine; both files are written."""

    snapshot_path: str
    mem_file_path: str
    snapshot_type: Literal["Full"] = "Full"


class MemoryBackend(msgspec.Struct, frozen=True, kw_only=True):
    """Where a machine's memory comes from; a file is mapped privately, so that clones share what they only read."""

    backend_path: str
    backend_type: Literal["File"] = "File"


class SnapshotSource(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /snapshot/load, in a fresh monitor."""

    snapshot_path: str
    mem_backend: MemoryBackend
    resume_vm: bool = True


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """GET /: ``state`` is "Not started", "Running" or "Paused"."""

    id: str
    state: str
    vmm_version: str


class _Action(msgspec.Struct, frozen=True, kw_only=True):
    action_type: Literal["InstanceStart"] = "InstanceStart"


class _State(msgspec.Struct, frozen=True, kw_only=True):
    state: Literal["Paused", "Resumed"]


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    fault_message: str = ""


class FirecrackerApi:
    """The API of one machine monitor. ``call_within_s`` bounds every call but the one that writes a snapshot.

    Every method raises SandboxFailed: the monitor refused (in its own words), ended, or did not answer in time.
    Cancellation: the connection is useless afterwards; end the monitor.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, call_within_s: float = 10.0
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._call_within_s = call_within_s
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def connect(
        cls, socket: str, *, ended: Callable[[], bool], within_s: float, call_within_s: float = 10.0
    ) -> "FirecrackerApi":
        """Wait until the monitor listens at ``socket``. Raises SandboxFailed when it ``ended`` before, or is late."""
        try:
            async with asyncio.timeout(within_s):
                while not ended():
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        reader, writer = await asyncio.open_unix_connection(socket, limit=_HEAD_BYTES_MAX)
                        return cls(reader, writer, call_within_s=call_within_s)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise SandboxFailed(f"firecracker opened no API within {within_s:g} s") from None
        raise SandboxFailed("firecracker ended before it opened its API")

    async def describe(self) -> InstanceInfo:
        """What the monitor says about itself."""
        return msgspec.json.decode(await self._call("GET", "/"), type=InstanceInfo)

    async def set_machine(self, config: MachineConfig) -> None:
        """Memory and processors; before ``start``."""
        await self._call("PUT", "/machine-config", config)

    async def set_boot_source(self, source: BootSource) -> None:
        """Kernel, initramfs, command line; before ``start``."""
        await self._call("PUT", "/boot-source", source)

    async def add_drive(self, drive: Drive) -> None:
        """One block device; the first is /dev/vda. Before ``start``."""
        await self._call("PUT", f"/drives/{drive.drive_id}", drive)

    async def set_vsock(self, vsock: Vsock) -> None:
        """The one device that leads to the host; before ``start``."""
        await self._call("PUT", "/vsock", vsock)

    async def start(self) -> None:
        """Run the machine from its kernel."""
        await self._call("PUT", "/actions", _Action())

    async def pause(self) -> None:
        """Stop its processors."""
        await self._call("PATCH", "/vm", _State(state="Paused"))

    async def resume(self) -> None:
        """Let them run again; every vsock connection has been reset."""
        await self._call("PATCH", "/vm", _State(state="Resumed"))

    async def create_snapshot(self, files: SnapshotFiles, *, within_s: float) -> None:
        """Write a paused machine to files; its whole memory is written, so this takes its time."""
        await self._call("PUT", "/snapshot/create", files, within_s=within_s)

    async def load_snapshot(self, source: SnapshotSource) -> None:
        """Become the machine that was written."""
        await self._call("PUT", "/snapshot/load", source)

    def close(self) -> None:
        """Drop the connection; idempotent. The monitor goes on."""
        self._writer.close()

    async def _call(
        self, method: str, path: str, body: msgspec.Struct | None = None, *, within_s: float | None = None
    ) -> bytes:
        content = b"" if body is None else msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        limit_s = within_s or self._call_within_s
        try:
            async with self._one_at_a_time, asyncio.timeout(limit_s):
                self._writer.write(head.encode() + b"\r\n" + content)
                await self._writer.drain()
                status, answer = await self._answer()
        except TimeoutError:
            raise SandboxFailed(f"firecracker did not answer {method} {path} within {limit_s:g} s") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise SandboxFailed(f"firecracker broke off {method} {path}: {reason}") from error
        if status not in _OK:
            raise SandboxFailed(f"firecracker refused {method} {path}: {_fault(answer) or f'status {status}'}")
        return answer

    async def _answer(self) -> tuple[int, bytes]:
        """One response (RFC 9112): status and body. Raises ValueError for what is none."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"{head[0][:80]!r} is no answer")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(fields.get("content-length", "0"))
        if not 0 <= length <= _BODY_BYTES_MAX:
            raise ValueError(f"an answer of {length} bytes")
        return int(rest[:3]), await self._reader.readexactly(length)


def _fault(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=_Fault).fault_message
    except msgspec.DecodeError:
        return answer[:200].decode("utf-8", "replace")
