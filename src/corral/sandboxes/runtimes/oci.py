"""The ``oci`` runtime: crun or runc makes the container, our agent is PID 1 in it.

The OCI runtime never has rights on the host. The launcher enters a user namespace first, in which root is one
unprivileged user of the tenant and the sandbox's user 1000 is another; crun or runc is root only there. A mistake in
it therefore costs the tenant's own sandbox. Limits come from the box's control group, which the launcher has joined
before; the OCI runtime itself touches none.

The agent gets two capabilities in that namespace, to forbid further user namespaces and to empty the bounding set
before it seals itself (``Setup``). Its folders are bounded by the bundle, so it needs no right to mount.
"""

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.kernel.errors import SandboxFailed
from corral.sandboxes import seccomp
from corral.sandboxes.cgroups import MOUNT, PROCESSES_OF_OURS
from corral.sandboxes.link import ResourceLimit, Setup
from corral.sandboxes.model import MIB, Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes import bundle, host_root
from corral.sandboxes.runtimes.box import Launch, Namespaces, Overhead, start_box
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.programs import Policy, Program, find_program
from corral.sandboxes.runtimes.rootfs import Roots
from corral.sandboxes.runtimes.tenant_users import TenantUsers

_log = structlog.get_logger(__name__)
_STREAM: Final = 3
_AGENT_CAPABILITIES: Final = ("CAP_SYS_RESOURCE", "CAP_SETPCAP")
# runc stays beside its container: a dozen threads of Go, and their memory
_OVERHEADS: Final = {
    "crun": Overhead(memory_bytes=4 * MIB, processes=1),
    "runc": Overhead(memory_bytes=32 * MIB, processes=24),
}


class OciConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``oci`` runtime.

    Attributes:
        program: name or path of crun or runc; "" takes crun when it is installed, else runc.
        vulnerable: what to do when its version has known vulnerabilities: "warn" or "refuse".
    """

    program: str = ""
    vulnerable: Policy = Policy.WARN


class OciRuntime:
    """See ``ports.Runtime``. Opened with its worker's ``Home``; ``close`` removes the roots that boxes share."""

    name = "oci"

    def __init__(
        self, home: Home, config: OciConfig, *, first_user: int = 0x70000000, start_within_s: float = 10.0
    ) -> None:
        """Raises SandboxFailed when the agent, the launcher or an OCI runtime is missing or refused."""
        self.program = _program(config)
        self._home = home
        self._users = TenantUsers(first_user) if os.geteuid() == 0 else None
        self._start_within_s = start_within_s
        hard = home.cgroups.hard
        self.capabilities = Capabilities(
            network=True,
            terminal=True,
            memory_limit="memory" in hard,
            process_limit="pids" in hard,
            disk_limit=True,
            file_limit=True,
        )
        self._seccomp = seccomp.program()
        self._roots: Roots | None = Roots(home, self.name, uid=first_user if self._users else None)

    @property
    def about(self) -> str:
        """The OCI runtime and its version."""
        return self.program.about

    async def start(self, spec: SandboxSpec) -> Box:
        if self._roots is None:
            raise SandboxFailed("the oci runtime is closed")
        root = self._roots.root(spec.root)
        user = self._users.of(spec.tenant) if self._users is not None else 0
        # without root's rights only one user can be mapped: the OCI runtime maps it again, to the sandbox's
        shape = bundle.Shape(
            arguments=("--fd", str(_STREAM)),
            capabilities=_AGENT_CAPABILITIES,
            user_map=None if user else (host_root.UID, 0),
        )
        folder = self._roots.boxes / spec.id

        def prepare() -> Launch:
            folder.mkdir(mode=0o711)
            state = folder / "state"
            state.mkdir(mode=0o700)
            if user:
                os.chown(state, user, user)
            bundle.write(folder, spec, root, shape)
            return Launch(
                argv=[*_command(self.program, state), "--bundle", str(folder), "--preserve-fds", "1", spec.id],
                setup=self._setup(spec),
                show=root.show,
                # crun refuses a machine with both kinds of control groups; it sees none, and needs none
                namespaces=Namespaces(first=user, hidden=(str(MOUNT),) if self.program.name == "crun" else ()),
                stream=_STREAM,
            )

        return await start_box(
            spec,
            self._home,
            prepare,
            within_s=self._start_within_s,
            folder=folder,
            overhead=_OVERHEADS[self.program.name],
        )

    def _setup(self, spec: SandboxSpec) -> Setup:
        setup = Setup.bounded(spec.size, seccomp=self._seccomp)
        hard, limits = self._home.cgroups.hard, list(setup.rlimits)
        if "memory" not in hard:
            limits.append(ResourceLimit.both(resource.RLIMIT_DATA, spec.size.memory_bytes))
        if "pids" not in hard:
            limits.append(ResourceLimit.both(resource.RLIMIT_NPROC, spec.size.processes + PROCESSES_OF_OURS))
        return replace(setup, mounts=(), rlimits=tuple(limits))  # the bundle mounts and bounds them

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Remove what boxes shared; idempotent. Stop every box before."""
        roots, self._roots = self._roots, None
        if roots is not None:
            roots.close()


def _program(config: OciConfig) -> Program:
    cure = "apt-get install crun, or name crun or runc in runtimes.oci.program"
    program = find_program(config.program, ("crun", "runc"), policy=config.vulnerable, cure=cure)
    if program.name == "runc" and os.geteuid() != 0:
        raise SandboxFailed(
            "runc needs two users in its namespace, which only root may map",
            cure="install crun, which needs one, or run the worker as root",
        )
    if program.advisories:
        _log.warning("known-vulnerabilities", program=program.about, path=str(program.path))
    return program


def _command(program: Program, state: Path) -> list[str]:
    if program.name == "crun":
        return [str(program.path), "--root", str(state), "--cgroup-manager", "disabled", "run"]
    return [str(program.path), "--root", str(state), "--rootless", "true", "run"]
