"""The ``qemu`` runtime: a virtual machine with a kernel of its own, by KVM where a boot succeeds, else by emulation.

The machine (QEMU's microvm) has the root image as its only disk, read-only, everything writable on tmpfs, no network
device, and one port to our agent. QEMU itself is confined: an unprivileged user of the tenant, confined by bubblewrap
with nothing in it, under its own system call filter and in the box's control group.

A sandbox normally goes on from a *template*, a machine of the same shape that was frozen when it had booted: that
costs a tenth of a boot, and clones share the memory that none of them changed.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from corral.kernel.clock import Clock, SystemClock
from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes import seccomp
from corral.sandboxes.guest.clock_rate import counter_khz
from corral.sandboxes.guest.console import Console
from corral.sandboxes.guest.greeting import ENTROPY_BYTES, Go, send_go, wait_hello
from corral.sandboxes.guest.kit import GuestKit, open_kit
from corral.sandboxes.guest.machine import (
    Accelerator,
    Descriptors,
    MachineShape,
    Stage,
    arguments,
    processors_for,
)
from corral.sandboxes.guest.qmp import Qmp
from corral.sandboxes.guest.root_image import RootImages
from corral.sandboxes.guest.template import Template, Templates, freeze, thaw
from corral.sandboxes.link import Setup
from corral.sandboxes.model import MIB, Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes.accelerators import KVM, Verdicts
from corral.sandboxes.runtimes.box import NOT_STARTED, Launch, Overhead, run_program, start_box
from corral.sandboxes.runtimes.confinement import FIRST_FREE, PROGRAM, Confinement
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.programs import find_program
from corral.sandboxes.runtimes.qemu_box import MachineBox
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.tenant_users import TenantUsers

_log = structlog.get_logger(__name__)
PROGRAM_NAME: Final = "qemu-system-x86_64"
_STREAM: Final = 3
# QEMU itself and its translated code; what a machine has beyond what its sandbox may use comes on top
_MEMORY_OF_OURS: Final = 192 * MIB
_THREADS_OF_OURS: Final = 96


@dataclass(frozen=True, slots=True)
class _Process:
    """One QEMU that is about to start: our ends of its sockets, and what it inherits."""

    console: Console
    monitor: socket.socket | None
    passed: tuple[int, ...]
    at: Descriptors
    state: int


class QemuRuntime:
    """See ``ports.Runtime``. Opened with its worker's ``Home``; ``close`` frees templates and shared descriptors."""

    name = "qemu"
    capabilities = Capabilities(
        kernel_boundary=True, terminal=True, memory_limit=True, process_limit=True, disk_limit=True, file_limit=True
    )

    def __init__(
        self,
        home: Home,
        config: QemuConfig,
        *,
        kits: Path,
        first_user: int = 0x70000000,
        start_within_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        """Raises SandboxFailed when QEMU, the guest kit or bubblewrap is missing."""
        cure = "apt-get install --no-install-recommends qemu-system-x86, or name it in runtimes.qemu.program"
        self.program = find_program(
            config.program or PROGRAM_NAME, ("QEMU emulator",), policy=config.vulnerable, cure=cure
        )
        self._kit: GuestKit = open_kit(kits)
        self._home = home
        self._config = config
        self._clock = clock or SystemClock()
        self._users = TenantUsers(first_user) if os.geteuid() == 0 else None
        self._start_within_s = start_within_s
        self._verdicts = Verdicts(home.directory / "kvm.json", wanted=config.accelerator)
        self._choosing = asyncio.Lock()
        self._seccomp = seccomp.program()
        self._roots = RootImages(home.directory / "root-images")
        self._templates = Templates(config.templates_max)
        self._held = ExitStack()
        self._confinement = Confinement()
        self._held.callback(self._confinement.close)
        self._held.callback(self._templates.close)
        self._kernel = os.open(self._kit.kernel, os.O_RDONLY | os.O_CLOEXEC)
        self._held.callback(os.close, self._kernel)
        self._initrd = os.open(self._kit.initrd, os.O_RDONLY | os.O_CLOEXEC)
        self._held.callback(os.close, self._initrd)
        self._closed = False

    @property
    def about(self) -> str:
        """QEMU, the guest's kernel, and how its instructions are run once that is known."""
        return f"{self.program.about}, {self._kit.about}{self._verdicts.about}"

    async def start(self, spec: SandboxSpec) -> Box:
        if self._closed:
            raise SandboxFailed("the qemu runtime is closed")
        if spec.network:
            raise InvalidSpec(
                "network: the qemu runtime gives no network", cure='use the runtime "oci"', field="network"
            )
        if not spec.root:
            raise InvalidSpec(
                "image: the qemu runtime boots from an image, and none is named",
                cure="name one (--image), or use a runtime that stands on the host's own programs",
                field="image",
            )
        image = await self._roots.image(spec.root)
        root = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            shape = self._shape(spec, root, await self._accelerator(spec, root))
            if not self._config.templates:
                return await self._boot(spec, shape, root)
            return await self._clone(spec, shape, root)
        finally:
            os.close(root)

    # ---- three ways to run QEMU ----

    async def _boot(self, spec: SandboxSpec, shape: MachineShape, root: int) -> Box:
        async def greet(stream: socket.socket) -> None:
            await wait_hello(stream)
            await send_go(stream, self._go(spec))

        with self._process(root) as process:
            launch = self._launch(spec, shape, Stage.BOOT, process, greet)
            return await self._started(spec, shape, launch, process, within_s=self._config.boot_within_s)

    async def _clone(self, spec: SandboxSpec, shape: MachineShape, root: int) -> Box:
        template = await self._templates.get(shape, lambda fresh: self._freeze(spec, fresh, root))
        with self._process(root, template, stage=Stage.CLONE) as process:

            async def greet(stream: socket.socket) -> None:
                assert process.monitor is not None
                async with Qmp.connected(process.monitor) as monitor:
                    await thaw(monitor, process.state)
                await send_go(stream, self._go(spec))

            launch = self._launch(spec, shape, Stage.CLONE, process, greet)
            return await self._started(spec, shape, launch, process, within_s=self._start_within_s)

    async def _freeze(self, spec: SandboxSpec, template: Template, root: int) -> None:
        began_s = self._clock.monotonic_s()
        with self._process(root, template, stage=Stage.TEMPLATE) as process:

            async def talk(stream: socket.socket) -> None:
                await wait_hello(stream)
                assert process.monitor is not None
                async with Qmp.connected(process.monitor) as monitor:
                    await freeze(monitor, template)

            await self._talked(spec, template.shape, Stage.TEMPLATE, process, talk, self._config.boot_within_s)
        _log.info(
            "template made",
            seconds=round(self._clock.monotonic_s() - began_s, 3),
            bytes=template.resident_bytes,
            accelerator=template.shape.accelerator,
        )

    # ---- their parts ----

    async def _accelerator(self, spec: SandboxSpec, root: int) -> Accelerator:
        """As configured; else KVM when a machine boots with it within its time, which is tried once."""
        async with self._choosing:
            fingerprint = f"{self.program.about} {self._kit.digest}"
            known = self._verdicts.known(fingerprint)
            if known is not None:
                return known
            shape = self._shape(spec, root, Accelerator.KVM)
            try:
                with self._process(root) as process:
                    within_s = self._config.kvm_within_s
                    await self._talked(spec, shape, Stage.BOOT, process, wait_hello, within_s)
            except SandboxFailed as error:
                return self._verdicts.refuse(fingerprint, _cause(error))
            return self._verdicts.accept(fingerprint)

    def _shape(self, spec: SandboxSpec, root: int, accelerator: Accelerator) -> MachineShape:
        status = os.fstat(root)
        manifest = self._kit.manifest
        return MachineShape(
            qemu=f"{self.program.path} {self.program.version}",
            accelerator=accelerator,
            kit=self._kit.digest,
            root=f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}",
            memory_bytes=spec.size.memory_bytes,
            processors=processors_for(spec.size.cpus, accelerator, many=manifest.processors),
            counter_khz=counter_khz() if accelerator is Accelerator.TCG else 0,
            acpi=manifest.acpi,
            loud=self._config.loud,
        )

    def _go(self, spec: SandboxSpec) -> Go:
        return Go(
            unix_s=self._clock.now_s(),
            entropy=os.urandom(ENTROPY_BYTES),
            host_name=spec.host_name,
            memory_bytes=spec.size.memory_bytes,
            processes=spec.size.processes,
        )

    @contextmanager
    def _process(self, root: int, template: Template | None = None, *, stage: Stage = Stage.BOOT) -> Iterator[_Process]:
        """Sockets and descriptors for one QEMU; the far ends are closed when it has started, the console is not."""
        with ExitStack() as ours:
            console, console_there = socket.socketpair()
            ours.callback(console_there.close)
            passed = [*self._confinement.descriptors, self._kernel, self._initrd, root, console_there.fileno()]
            at = Descriptors(stream=_STREAM, **_numbers("kernel", "initrd", "root", "console"))
            monitor, state = None, -1
            if template is not None:
                monitor, monitor_there = socket.socketpair()
                ours.callback(monitor_there.close)
                ours.callback(monitor.close)
                passed += [monitor_there.fileno(), os.dup(template.memory)]
                ours.callback(os.close, passed[-1])
                at = replace(at, monitor=at.console + 1, memory=at.console + 2)
                if stage is Stage.CLONE:
                    passed.append(template.opened_state())
                    ours.callback(os.close, passed[-1])
                    state = at.memory + 1
            process = _Process(Console(console), monitor, tuple(passed), at, state)
            try:
                yield process
            except BaseException:
                process.console.close()
                raise

    def _launch(
        self,
        spec: SandboxSpec,
        shape: MachineShape,
        stage: Stage,
        process: _Process,
        greet: Callable[[socket.socket], Awaitable[None]] | None = None,
    ) -> Launch:
        kvm = shape.accelerator is Accelerator.KVM
        command = arguments(str(self.program.path), shape, stage, process.at)
        user = self._users.of(spec.tenant) if self._users is not None else None
        return Launch(
            argv=self._confinement.argv(command, devices=(str(KVM),) if kvm else ()),
            setup=Setup.bounded(spec.size, seccomp=self._seccomp),
            user=None if user is None else (user, KVM.stat().st_gid or user if kvm else user),
            stream=_STREAM,
            descriptors=process.passed,
            program=PROGRAM,
            env=self._confinement.env,
            greet=greet,
            abrupt=True,
        )

    async def _started(
        self, spec: SandboxSpec, shape: MachineShape, launch: Launch, process: _Process, *, within_s: float
    ) -> Box:
        try:
            box = await start_box(spec, self._home, lambda: launch, within_s=within_s, overhead=_overhead(shape))
        except SandboxFailed as error:
            raise _with_console(error, process.console) from error
        return MachineBox(box, process.console)

    async def _talked(
        self,
        spec: SandboxSpec,
        shape: MachineShape,
        stage: Stage,
        process: _Process,
        talk: Callable[[socket.socket], Awaitable[None]],
        within_s: float,
    ) -> None:
        """Run QEMU without a sandbox, for as long as ``talk`` takes."""
        launch = self._launch(spec, shape, stage, process)
        own = replace(spec, id=f"{stage}_{spec.id}")
        try:
            await run_program(own, self._home, lambda: launch, talk, within_s=within_s, overhead=_overhead(shape))
        except SandboxFailed as error:
            raise _with_console(error, process.console) from error
        process.console.close()

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Free what machines share; idempotent. Stop every box before."""
        self._closed = True
        self._held.close()


def _overhead(shape: MachineShape) -> Overhead:
    """A page of a clone may be there twice: see ``guest.template``. The machine itself bounds the sandbox."""
    beyond_bytes = 2 * shape.machine_bytes - shape.memory_bytes
    return Overhead(memory_bytes=_MEMORY_OF_OURS + beyond_bytes, processes=_THREADS_OF_OURS)


def _numbers(*names: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, start=FIRST_FREE)}


def _cause(error: SandboxFailed) -> str:
    return error.message.splitlines()[0].removeprefix(NOT_STARTED)


def _with_console(error: SandboxFailed, console: Console) -> SandboxFailed:
    """The guest's last line explains more than the end of its stream."""
    console.close()
    last = console.text.splitlines()[-1:]
    if not last:
        return error
    return SandboxFailed(f"{error.message}; its console ends with: {last[0][:200]}", cure=error.cure)
