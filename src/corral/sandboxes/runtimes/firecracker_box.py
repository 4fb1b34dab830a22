"""One sandbox in a Firecracker machine: everything that one start made, and the one who frees it."""

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from corral.kernel.errors import SandboxFailed, SandboxLost
from corral.sandboxes.cgroups import Cgroup
from corral.sandboxes.guest.greeting import wait_hello
from corral.sandboxes.link import Link
from corral.sandboxes.model import MIB, SandboxSpec
from corral.sandboxes.ports import LimitEvents
from corral.sandboxes.runtimes.box import freed, leave
from corral.sandboxes.runtimes.firecracker_api import MemoryBackend, SnapshotFiles, SnapshotSource
from corral.sandboxes.runtimes.firecracker_jail import Jail
from corral.sandboxes.runtimes.firecracker_machine import MEMORY, STATE, Machine
from corral.sandboxes.runtimes.firecracker_vmm import Vmm
from corral.sandboxes.runtimes.home import Home

T = TypeVar("T")
_END_WITHIN_S: Final = 5.0
STOP_WITHIN_S: Final = 20.0
_SNAPSHOT_WITHIN_S: Final = 120.0
_FROZEN: Final = "frozen-"
_LAST_MOMENT_S: Final = 0.5


class FirecrackerBox:
    """See ``ports.Box``. Life: ``prepare`` → ``boot`` or ``thaw`` → ``wait_call`` → ``wait_link`` → ``stop``.

    ``machine`` is what it was made of.
    """

    def __init__(self, spec: SandboxSpec, home: Home, jail: Jail, machine: Machine, cgroup: Cgroup) -> None:
        self._spec = spec
        self._home = home
        self._jail = jail
        self._cgroup = cgroup
        self._vmm: Vmm | None = None
        self._listener: socket.socket | None = None
        self._link: Link | None = None
        self._events = LimitEvents()
        self.machine = machine

    @property
    def spec(self) -> SandboxSpec:
        return self._spec

    @property
    def link(self) -> Link:
        assert self._link is not None, "the runtime gave the box away before its link was up"
        return self._link

    @property
    def pid(self) -> int:
        """Firecracker's process id on the host, for tests and for people."""
        return self._vmm.pid if self._vmm is not None else 0

    @property
    def jail(self) -> Jail:
        return self._jail

    @property
    def console(self) -> str:
        """The end of what monitor and guest printed."""
        return self._vmm.console.text if self._vmm is not None else ""

    def limit_events_nowait(self) -> LimitEvents:
        """Of the monitor's group: a machine has its own limits inside, and tells of them itself."""
        self._events = self._events.at_least(out_of_memory=self._cgroup.counters().out_of_memory)
        return self._events

    async def prepare(self, jailer: Path, files: Mapping[str, Path], *, within_s: float) -> None:
        """Jail, listener and monitor; nothing runs in the machine yet. Raises SandboxFailed."""
        await asyncio.to_thread(self._jail.make, files)
        self._listener = self._jail.listen()
        command = self._jail.command(jailer, file_bytes_max=self.machine.file_bytes_max)
        self._vmm = await Vmm.start(self._jail, command, self._cgroup.join_files, within_s=within_s)

    async def boot(self) -> None:
        """Run the machine from its kernel. Raises SandboxFailed in the monitor's words."""
        api, machine = self._monitor.api, self.machine
        await api.set_machine(machine.config)
        await api.set_boot_source(machine.boot_source)
        await api.add_drive(machine.drive)
        await api.set_vsock(machine.vsock)
        await api.start()

    async def thaw(self) -> None:
        """Run the machine from the snapshot in its jail. Raises SandboxFailed in the monitor's words."""
        source = SnapshotSource(snapshot_path=f"/{STATE}", mem_backend=MemoryBackend(backend_path=f"/{MEMORY}"))
        await self._monitor.api.load_snapshot(source)

    async def wait_call(self, *, within_s: float, greeted: bool = True) -> socket.socket:
        """The guest's call, once it has said hello (a guest that was set up before it was frozen says none).

        Raises SandboxFailed with the monitor's or the guest's words, as soon as the machine has ended.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._unless_ended(self._wait_call(greeted))
        except TimeoutError:
            words = self._monitor.console.fault
            reason = f"the guest did not call within {within_s:g} s"
            raise SandboxFailed(f"{reason}: {words}" if words else reason) from None

    async def wait_link(self, opening: Coroutine[Any, Any, Link]) -> None:
        """Have ``opening`` end, or the machine before it; whoever calls later is nobody we know."""
        self._link = await self._unless_ended(opening)
        self._close_listener()

    async def freeze(self) -> dict[str, Path]:
        """Write the machine to files, and end it; they lie in the jail. Raises SandboxFailed."""
        monitor = self._monitor
        # what is written may be counted as memory of the group until it is on the disk
        machine_bytes = self.machine.memory_mib * MIB
        self._cgroup.allow_memory(2 * machine_bytes + self.machine.overhead.memory_bytes)
        await monitor.api.pause()
        # other names than those of the snapshot that it may itself have come from
        wanted = SnapshotFiles(snapshot_path=f"/{_FROZEN}{STATE}", mem_file_path=f"/{_FROZEN}{MEMORY}")
        await monitor.api.create_snapshot(wanted, within_s=_SNAPSHOT_WITHIN_S)
        await self._end_monitor()
        if self._link is not None:
            self._link.close()  # not before: an agent whose stream ended, instead of being reset, ends too
        return {name: self._jail.root / f"{_FROZEN}{name}" for name in (STATE, MEMORY)}

    async def stop(self) -> None:
        """See ``ports.Box.stop``. Raises SandboxFailed when something of it stays; the rest is freed."""
        if self._link is not None:
            self._link.close()
        self._close_listener()
        failures = [*await freed("its monitor", self._end_monitor())]
        self.limit_events_nowait()  # for whoever asks afterwards why the box ended
        self._cgroup.kill()
        failures += await freed("its control group", self._cgroup.remove())
        failures += await freed("its jail", asyncio.to_thread(self._jail.remove))
        leave(self._home, self._spec, failures)

    @property
    def _monitor(self) -> Vmm:
        if self._vmm is None:
            raise SandboxFailed("the machine has no monitor")
        return self._vmm

    async def _wait_call(self, greeted: bool) -> socket.socket:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            try:
                if greeted:
                    await wait_hello(connection)
            except SandboxLost:
                connection.close()  # a call that a snapshot cut off: the next one comes
                continue
            except BaseException:
                connection.close()
                raise
            return connection

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, unless the machine ends before it: then its last words, at once."""
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                with self._monitor.at_end(lambda: limit.reschedule(loop.time())):
                    return await work
        except TimeoutError:
            if not limit.expired():
                raise
        except SandboxLost:  # its stream ends a moment before it does
            if not await self._monitor.wait_ended(within_s=_LAST_MOMENT_S):
                raise
        raise await self._monitor.wait_fault()

    async def _end_monitor(self) -> None:
        if self._vmm is None:
            return
        self._vmm.kill()
        if not await self._vmm.wait_ended(within_s=_END_WITHIN_S):
            self._cgroup.kill()
            if not await self._vmm.wait_ended(within_s=_END_WITHIN_S):
                raise SandboxFailed(f"process {self._vmm.pid} does not die")
        self._vmm.close()

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._jail.deafen(listener)
