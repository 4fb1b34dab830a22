"""The ``firecracker`` runtime: every sandbox is a machine with its own kernel on KVM, and no network device.

The monitor runs in the jailer's jail: its own user, root directory, PID namespace and control group. The root image is
read-only, everything writable is tmpfs inside the guest, and the only way out is one vsock on which the guest calls the
host. A machine is booted once for each (kit, image, size), frozen before anything of a tenant is in it, and every
start is a copy of that template; with ``templates = false`` every start boots.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from corral.kernel.clock import Clock, SystemClock
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, SandboxFailed
from corral.kernel.units import format_duration
from corral.sandboxes import seccomp
from corral.sandboxes.guest.greeting import ENTROPY_BYTES, Go, send_go
from corral.sandboxes.guest.kit import open_kit
from corral.sandboxes.guest.root_image import RootImages
from corral.sandboxes.link import Link, Reseed, Setup
from corral.sandboxes.model import Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes.box import enter
from corral.sandboxes.runtimes.firecracker_box import STOP_WITHIN_S, FirecrackerBox
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.firecracker_jail import Jail
from corral.sandboxes.runtimes.firecracker_machine import ROOT, Machine, root_identity
from corral.sandboxes.runtimes.firecracker_probe import find_programs, probe
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.snapshots import Note, Snapshot, Snapshots
from corral.sandboxes.runtimes.tenant_users import TenantUsers

_log = structlog.get_logger(__name__)


class FirecrackerRuntime:
    """See ``ports.Runtime`` and ``ports.Snapshotting``. Opened with its worker's ``Home``."""

    name = "firecracker"

    def __init__(
        self,
        home: Home,
        config: FirecrackerConfig,
        *,
        kits: Path,
        first_user: int = 0x70000000,
        start_within_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        """Looks for everything that a start needs, and boots a machine.

        Raises SandboxFailed: something is missing, or no guest boots on this machine; the message says why.
        """
        self._programs = find_programs(config)
        if os.geteuid() != 0:
            raise SandboxFailed("the jailer of firecracker needs root", cure='run the worker as root, or use "qemu"')
        if "memory" not in home.cgroups.hard:
            raise SandboxFailed("firecracker needs control groups", cure=home.cgroups.why)
        self._kit = open_kit(kits)
        self._config = config
        self._home = home
        self._clock = clock or SystemClock()
        self._start_within_s = start_within_s
        self._users = TenantUsers(first_user)
        self._seccomp = seccomp.program()
        booted_s = probe(self._programs, self._kit, boot_args=config.boot_args, within_s=config.probe_within_s)
        self.about = (
            f"firecracker {self._programs.version}, {self._kit.about}, which booted in {format_duration(booted_s)}"
        )
        self.capabilities = Capabilities(
            kernel_boundary=True,
            snapshot=True,
            terminal=True,
            memory_limit=True,
            process_limit=True,
            disk_limit=True,
            file_limit=True,
        )
        self._images = RootImages(home.directory / "root-images")
        self._snapshots = Snapshots(home.directory / "snapshots-firecracker", bytes_max=config.snapshot_bytes_max)
        self._templates: dict[str, Digest | None] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def start(self, spec: SandboxSpec) -> Box:
        machine = await self._machine(spec)
        template = await self._template(machine, spec) if self._config.templates else None
        return await self._started(spec, machine, template)

    async def snapshot(self, box: Box) -> Digest:
        """See ``ports.Snapshotting``."""
        if not isinstance(box, FirecrackerBox):
            raise InvalidSpec("this box was not started by the firecracker runtime")
        machine = box.machine
        try:
            files = await box.freeze()
            note = Note(
                made_by=machine.made_by,
                tenant=box.spec.tenant,
                root=box.spec.root,
                size=box.spec.size,
                id=box.spec.id,
            )
            return await asyncio.to_thread(self._snapshots.keep, note, files)
        finally:
            await finish(box.stop(), within_s=STOP_WITHIN_S)

    async def restore(self, snapshot: Digest, spec: SandboxSpec) -> Box:
        """See ``ports.Snapshotting``."""
        found = await asyncio.to_thread(self._snapshots.find, snapshot)
        if mistake := found.note.mistake(spec):
            raise InvalidSpec(f"snapshot {snapshot} cannot become {spec.id}: {mistake}")
        machine = await self._machine(spec)
        if found.note.made_by != machine.made_by:
            raise InvalidSpec(f"snapshot {snapshot} was made of another kernel, image or firecracker")
        box = await self._prepared(spec, machine, found)
        try:
            await box.thaw()
            call = await box.wait_call(within_s=self._start_within_s, greeted=False)
            await box.wait_link(Link.resume(call, self._setup(spec), self._reseed(spec), within_s=self._start_within_s))
        except BaseException:
            await finish(box.stop(), within_s=STOP_WITHIN_S)
            raise
        return box

    async def forget(self, snapshot: Digest) -> None:
        """See ``ports.Snapshotting``."""
        await asyncio.to_thread(self._snapshots.drop, snapshot)

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Remove what boxes shared; idempotent. Stop every box before."""
        self._templates.clear()
        self._snapshots.close()

    async def _machine(self, spec: SandboxSpec) -> Machine:
        if spec.network:
            raise InvalidSpec(
                "network: the firecracker runtime gives no network", cure='use the runtime "oci"', field="network"
            )
        if not spec.root:
            raise InvalidSpec(
                "image: the firecracker runtime boots from an image, and none is named",
                cure="name one (--image), or use a runtime that stands on the host's own programs",
                field="image",
            )
        root = await self._images.image(spec.root)
        try:
            identity = root_identity(root)
        except OSError as error:
            raise SandboxFailed(f"the root image {root} cannot be read: {error.strerror}") from error
        return Machine(
            program=self._programs.version,
            kit=self._kit,
            root=root,
            root_identity=identity,
            size=spec.size,
            boot_args=self._config.boot_args,
        )

    async def _started(self, spec: SandboxSpec, machine: Machine, template: Snapshot | None) -> FirecrackerBox:
        box = await self._prepared(spec, machine, template)
        try:
            if template is None:
                await box.boot()
            else:
                await box.thaw()
            within_s = self._config.boot_within_s if template is None else self._start_within_s
            call = await box.wait_call(within_s=within_s)
            await box.wait_link(self._open(call, spec))
        except BaseException:
            await finish(box.stop(), within_s=STOP_WITHIN_S)
            raise
        return box

    async def _prepared(self, spec: SandboxSpec, machine: Machine, frozen: Snapshot | None) -> FirecrackerBox:
        """A box with a monitor that has been told nothing yet."""
        memory_bytes = spec.size.memory_bytes + machine.overhead.memory_bytes
        size = replace(spec.size, memory_bytes=memory_bytes, processes=machine.overhead.processes)
        cgroup = enter(self._home, spec, size)
        assert cgroup is not None, "the runtime was opened without control groups"
        user = self._users.of(spec.tenant)
        jail = Jail(
            folder=self._home.work / spec.id,
            name=spec.host_name,
            program=self._programs.firecracker,
            user=(user, user),
        )
        box = FirecrackerBox(spec, self._home, jail, machine, cgroup)
        files: Mapping[str, Path] = {**frozen.files, ROOT: machine.root} if frozen else machine.files
        try:
            await box.prepare(self._programs.jailer, files, within_s=self._start_within_s)
        except BaseException:
            await finish(box.stop(), within_s=STOP_WITHIN_S)
            raise
        return box

    async def _open(self, call: socket.socket, spec: SandboxSpec) -> Link:
        try:
            await send_go(
                call,
                Go(
                    unix_s=self._clock.now_s(),
                    entropy=secrets.token_bytes(ENTROPY_BYTES),
                    host_name=spec.host_name,
                    memory_bytes=spec.size.memory_bytes,
                    processes=spec.size.processes,
                ),
            )
        except BaseException:
            call.close()
            raise
        return await Link.open(call, self._setup(spec), within_s=self._start_within_s)

    def _setup(self, spec: SandboxSpec) -> Setup:
        return Setup.bounded(spec.size, seccomp=self._seccomp)

    def _reseed(self, spec: SandboxSpec) -> Reseed:
        return Reseed(
            unix_ns=round(self._clock.now_s() * 1e9),
            host_name=spec.host_name,
            entropy=secrets.token_bytes(ENTROPY_BYTES),
        )

    async def _template(self, machine: Machine, spec: SandboxSpec) -> Snapshot | None:
        """The frozen machine of which every start is a copy; None when it cannot be frozen: then every start boots."""
        key = f"{machine.made_by} {spec.root} {machine.size}"
        async with self._making.setdefault(key, asyncio.Lock()):
            if key not in self._templates:
                self._templates[key] = await self._made_template(machine, spec)
            if (made := self._templates[key]) is None:
                return None
            try:
                return await asyncio.to_thread(self._snapshots.find, made)
            except NotFound:  # others took its place on the disk
                del self._templates[key]
                return None

    async def _made_template(self, machine: Machine, spec: SandboxSpec) -> Digest | None:
        # a tenant of its own, who never gets a sandbox: nobody else's user may touch what all share
        own = SandboxSpec(id=f"{spec.id}_template", tenant="", root=spec.root, size=spec.size)
        box = await self._prepared(own, machine, None)
        try:
            await box.boot()
            call = await box.wait_call(within_s=self._config.boot_within_s)
            try:
                files = await box.freeze()
                note = Note(made_by=machine.made_by, tenant="", root=spec.root, size=spec.size, id=own.id)
                return await asyncio.to_thread(self._snapshots.keep, note, files)
            except SandboxFailed as error:
                _log.warning("no-template", runtime=self.name, reason=str(error))
                return None
            finally:
                call.close()
        finally:
            await finish(box.stop(), within_s=STOP_WITHIN_S)
