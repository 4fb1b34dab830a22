"""The ``gvisor`` runtime: runsc's own kernel serves every system call of the box; our agent is PID 1 in it.

runsc is root of a user namespace of the tenant's and nothing on the host, without network and without control groups of
its own: the whole sandbox lives in the box's group. It makes its kernel the user "nobody" in an empty root, which is
the tenant's second user. That kernel is a process like any other in the group, so a sandbox that uses up its memory
ends as a whole, and its execs end as OUT_OF_MEMORY (``Sandbox``). A worker that is not root cannot map two users: there
runsc runs "rootless", as the worker's user.

Checkpoints are its own: the sandbox's kernel writes itself to a file and ends. runsc restores none when it is rootless,
so a worker that is not root has no snapshots. A restored sandbox is named anew from outside, for its agent has no
capability left to do it.

What this kernel cannot do is told by ``capabilities`` and ``Link.notes``: it bounds the bytes of a folder but not the
number of files, and processes only together with its own threads (beyond them the sandbox ends).
"""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes import seccomp
from corral.sandboxes.link import Reseed, Setup
from corral.sandboxes.model import GIB, MIB, Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes import bundle
from corral.sandboxes.runtimes.box import Launch, Namespaces, Overhead, ProcessBox, start_box
from corral.sandboxes.runtimes.child import run_to_end
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.programs import Policy, find_program
from corral.sandboxes.runtimes.rootfs import AGENT_INSIDE, Roots
from corral.sandboxes.runtimes.snapshots import Note, Snapshots, put
from corral.sandboxes.runtimes.tenant_users import IDS_PER_TENANT, TENANTS_MAX, TenantUsers

_log = structlog.get_logger(__name__)
_IMAGE: Final = "image"
_NOBODY: Final = 65534  # as whom a runsc that is root runs its kernel
_CHECKPOINT_WITHIN_S: Final = 60.0
_STOP_WITHIN_S: Final = 15.0
PLATFORMS: Final = ("systrap", "ptrace", "kvm")
# runsc itself, its kernel and its file server; and up to two threads of the kernel for each process of the sandbox
_MEMORY_OF_OURS: Final = 160 * MIB
_THREADS_OF_OURS: Final = 96
_THREADS_PER_PROCESS: Final = 2


class GvisorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``gvisor`` runtime.

    Attributes:
        program: name or path of runsc; "" takes the one that is installed.
        platform: "systrap", "ptrace" or "kvm"; "" takes the first that starts a sandbox, in this order.
        vulnerable: what to do when its version has known vulnerabilities: "warn" or "refuse".
        snapshot_bytes_max: of all checkpoints on disk.
    """

    program: str = ""
    platform: str = ""
    vulnerable: Policy = Policy.WARN
    snapshot_bytes_max: int = 4 * GIB

    def __post_init__(self) -> None:
        if self.platform not in ("", *PLATFORMS):
            raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, or empty")


class GvisorRuntime:
    """See ``ports.Runtime``. Opened with its worker's ``Home``; ``close`` removes the roots that boxes share.

    Attributes:
        platform: how runsc catches system calls; "" until the first box has started.
    """

    name = "gvisor"

    def __init__(
        self, home: Home, config: GvisorConfig, *, first_user: int = 0x70000000, start_within_s: float = 10.0
    ) -> None:
        """Raises SandboxFailed when the agent, the launcher or runsc is missing or refused."""
        cure = "apt-get install runsc, or name it in runtimes.gvisor.program"
        self.program = find_program(config.program, ("runsc",), policy=config.vulnerable, cure=cure)
        if self.program.advisories:
            _log.warning("known-vulnerabilities", program=self.program.about, path=str(self.program.path))
        self.platform = config.platform
        self._home = home
        # other ids than those of the oci runtime: the same number must not be two tenants
        first_user += IDS_PER_TENANT * TENANTS_MAX
        self._users = TenantUsers(first_user) if os.geteuid() == 0 else None
        self._start_within_s = start_within_s
        self._choosing = asyncio.Lock()
        hard = home.cgroups.hard
        self.capabilities = Capabilities(
            kernel_boundary=True,
            snapshot=self._users is not None,
            terminal=True,
            memory_limit="memory" in hard,
            disk_limit=True,
        )
        self._seccomp = seccomp.program()
        self._roots: Roots | None = Roots(home, self.name, uid=first_user if self._users else None)
        self._snapshots = Snapshots(home.directory / "snapshots-gvisor", bytes_max=config.snapshot_bytes_max)

    @property
    def about(self) -> str:
        """runsc, its version, and its platform once that is known."""
        return f"{self.program.about}{f', platform {self.platform}' if self.platform else ''}"

    async def start(self, spec: SandboxSpec) -> Box:
        if spec.network:
            raise InvalidSpec(
                "network: the gvisor runtime gives no network", cure='use the runtime "oci"', field="network"
            )
        if self.platform:
            return await self._start(spec, self.platform)
        async with self._choosing:
            return await self._start_and_choose(spec)

    async def _start_and_choose(self, spec: SandboxSpec) -> Box:
        """The first platform on which a box really starts is this machine's."""
        reasons: list[str] = []
        for platform in (self.platform,) if self.platform else PLATFORMS:
            try:
                box = await self._start(spec, platform)
            except SandboxFailed as error:
                reasons.append(f"{platform}: {error.message.splitlines()[0]}")
                continue
            self.platform = platform
            return box
        raise SandboxFailed(f"runsc starts on no platform: {'; '.join(reasons)}", cure="run `corral doctor`")

    async def _start(self, spec: SandboxSpec, platform: str) -> Box:
        if self._roots is None:
            raise SandboxFailed("the gvisor runtime is closed")
        root = self._roots.root(spec.root)
        user = self._users.of(spec.tenant) if self._users is not None else None
        folder = self._roots.boxes / spec.id

        def prepare() -> Launch:
            folder.mkdir(mode=0o711)
            state = folder / "state"
            state.mkdir(mode=0o700)
            if user is not None:
                os.chown(state, user, user)
            bundle.write(folder, spec, root, bundle.Shape(bounded_files=False))
            return Launch(
                argv=[*self._runsc(folder, platform), "run", "--bundle", str(folder), spec.id],
                setup=self._setup(spec),
                show=root.show,
                namespaces=None if user is None else Namespaces(first=user, second=_NOBODY),
            )

        return await start_box(
            spec,
            self._home,
            prepare,
            within_s=self._start_within_s,
            folder=folder,
            overhead=_overhead(spec),
        )

    async def snapshot(self, box: Box) -> Digest:
        """See ``ports.Snapshotting``."""
        roots, users = self._roots, self._users
        if roots is None or users is None or not isinstance(box, ProcessBox) or not self.platform:
            raise InvalidSpec("this box was not started by a gvisor runtime that can freeze it")
        spec, folder = box.spec, roots.boxes / box.spec.id
        image, user = folder / _IMAGE, users.of(spec.tenant)
        try:
            image.mkdir(mode=0o700)
            os.chown(image, user, user)
            command = [*self._runsc(folder, self.platform), "checkpoint", "--image-path", str(image), spec.id]
            await run_to_end(command, beside=box.pid, within_s=_CHECKPOINT_WITHIN_S)
            note = Note(made_by=self._made_by, tenant=spec.tenant, root=spec.root, size=spec.size, id=spec.id)
            files = {file.name: file for file in image.iterdir()}
            return await asyncio.to_thread(self._snapshots.keep, note, files)
        except OSError as error:
            raise SandboxFailed(f"the sandbox cannot be frozen: {error}") from error
        finally:
            await finish(box.stop(), within_s=_STOP_WITHIN_S)

    async def restore(self, snapshot: Digest, spec: SandboxSpec) -> Box:
        """See ``ports.Snapshotting``."""
        if self._roots is None:
            raise SandboxFailed("the gvisor runtime is closed")
        found = await asyncio.to_thread(self._snapshots.find, snapshot)
        if mistake := found.note.mistake(spec):
            raise InvalidSpec(f"snapshot {snapshot} cannot become {spec.id}: {mistake}")
        assert self._users is not None, "there are no snapshots without"
        root = self._roots.root(spec.root)
        folder = self._roots.boxes / spec.id
        user = self._users.of(spec.tenant)

        def prepare() -> Launch:
            folder.mkdir(mode=0o711)
            for name in ("state", _IMAGE):
                (folder / name).mkdir(mode=0o700)
            for name, file in found.files.items():
                put(file, folder / _IMAGE / name)
            for name in ("state", _IMAGE):
                os.chown(folder / name, user, user)
            bundle.write(folder, spec, root, bundle.Shape(bounded_files=False))
            return Launch(
                argv=[
                    *self._runsc(folder, self.platform),
                    "restore",
                    "--image-path",
                    str(folder / _IMAGE),
                    "--bundle",
                    str(folder),
                    spec.id,
                ],
                setup=self._setup(spec),
                reseed=Reseed(unix_ns=0),  # clock and randomness are the host's
                show=root.show,
                namespaces=Namespaces(first=user, second=_NOBODY),
            )

        box = await start_box(
            spec, self._home, prepare, within_s=self._start_within_s, folder=folder, overhead=_overhead(spec)
        )
        try:
            naming = ["exec", "--user", "0:0", "--cap", "CAP_SYS_ADMIN", spec.id, AGENT_INSIDE, "--host-name"]
            command = [*self._runsc(folder, self.platform), *naming, spec.host_name]
            await run_to_end(command, beside=box.pid, within_s=self._start_within_s)
        except BaseException:
            await finish(box.stop(), within_s=_STOP_WITHIN_S)
            raise
        return box

    async def forget(self, snapshot: Digest) -> None:
        """See ``ports.Snapshotting``."""
        await asyncio.to_thread(self._snapshots.drop, snapshot)

    @property
    def _made_by(self) -> str:
        return f"{self.program.about} {self.platform}"

    def _runsc(self, folder: Path, platform: str) -> list[str]:
        return [
            *(str(self.program.path), "--root", str(folder / "state"), "--platform", platform),
            *("--network=none", "--ignore-cgroups", *(["--rootless"] if self._users is None else [])),
        ]

    def _setup(self, spec: SandboxSpec) -> Setup:
        return replace(Setup.bounded(spec.size, seccomp=self._seccomp), mounts=(), forbid_user_namespaces=False)

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Remove what boxes shared; idempotent. Stop every box before."""
        roots, self._roots = self._roots, None
        if roots is not None:
            roots.close()
            self._snapshots.close()


def _overhead(spec: SandboxSpec) -> Overhead:
    threads = _THREADS_OF_OURS + (_THREADS_PER_PROCESS - 1) * spec.size.processes
    return Overhead(memory_bytes=_MEMORY_OF_OURS, processes=threads)
