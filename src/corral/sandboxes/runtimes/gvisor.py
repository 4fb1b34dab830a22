"""The ``gvisor`` runtime: runsc's own kernel serves every system call of the box; our agent is PID 1 in it.

runsc runs as an unprivileged user of the tenant, without network and without control groups of its own: the whole
sandbox lives in the box's group. Its kernel is a process like any other there, so a sandbox that uses up its memory
ends as a whole, and its execs end as OUT_OF_MEMORY (``Sandbox``).

What this kernel cannot do is told by ``capabilities`` and ``Link.notes``: it bounds the bytes of a folder but not the
number of files, and processes only together with its own threads (beyond them the sandbox ends).
"""

import asyncio
import os
from dataclasses import replace
from typing import Final

import msgspec
import structlog

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes import seccomp
from corral.sandboxes.link import Setup
from corral.sandboxes.model import MIB, Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes import bundle
from corral.sandboxes.runtimes.box import Launch, Overhead, start_box
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.programs import Policy, find_program
from corral.sandboxes.runtimes.rootfs import Roots
from corral.sandboxes.runtimes.tenant_users import IDS_PER_TENANT, TENANTS_MAX, TenantUsers

_log = structlog.get_logger(__name__)
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
    """

    program: str = ""
    platform: str = ""
    vulnerable: Policy = Policy.WARN

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
            kernel_boundary=True, terminal=True, memory_limit="memory" in hard, disk_limit=True
        )
        self._seccomp = seccomp.program()
        self._roots: Roots | None = Roots(home, self.name, uid=first_user if self._users else None)

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
                argv=[
                    *(str(self.program.path), "--root", str(state), "--rootless", "--platform", platform),
                    *("--network=none", "--ignore-cgroups", "run", "--bundle", str(folder), spec.id),
                ],
                setup=self._setup(spec),
                show=root.show,
                user=None if user is None else (user, user),
            )

        return await start_box(
            spec,
            self._home,
            prepare,
            within_s=self._start_within_s,
            folder=folder,
            overhead=_overhead(spec),
        )

    def _setup(self, spec: SandboxSpec) -> Setup:
        return replace(Setup.bounded(spec.size, seccomp=self._seccomp), mounts=(), forbid_user_namespaces=False)

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Remove what boxes shared; idempotent. Stop every box before."""
        roots, self._roots = self._roots, None
        if roots is not None:
            roots.close()


def _overhead(spec: SandboxSpec) -> Overhead:
    threads = _THREADS_OF_OURS + (_THREADS_PER_PROCESS - 1) * spec.size.processes
    return Overhead(memory_bytes=_MEMORY_OF_OURS, processes=threads)
