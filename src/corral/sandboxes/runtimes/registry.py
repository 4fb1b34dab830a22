"""Names of runtimes, and which of them this program can open."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from corral.kernel.errors import InvalidSpec
from corral.sandboxes.cgroups import CONTROLLERS, Cgroups
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes import really_really_dangerous
from corral.sandboxes.runtimes.bubblewrap import BubblewrapRuntime, HostUser
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.gvisor import GvisorConfig, GvisorRuntime
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.oci import OciConfig, OciRuntime
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.really_really_dangerous import ReallyReallyDangerousRuntime
from corral.sandboxes.runtimes.tenant_users import IDS_PER_TENANT, TENANTS_MAX

_log = structlog.get_logger(__name__)
_TENANT_UIDS_FROM: Final = 65536  # below lie people and services
_TENANT_UIDS_TO: Final = 2**31 - 4 * IDS_PER_TENANT * TENANTS_MAX


class RuntimesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which runtimes a worker offers, and how it starts them.

    Attributes:
        names: of ``KNOWN``; the first is the default.
        start_within_s: a sandbox that has not answered by then has failed.
        host_uid, host_gid: who a bubblewrap sandbox is on the host when the worker is root; never 0.
        tenant_uid_first: from here on every tenant gets host ids of its own for its sandboxes (not bubblewrap) when
            the worker is root; 800,000 ids that belong to nobody else.
        oci: the runtime "oci".
        gvisor: the runtime "gvisor".
        firecracker: the runtime "firecracker".
        qemu: the runtime "qemu".
        kits: directory of the guest kits of virtual machines, or of one kit; "" is ``guest`` in the data directory.
    """

    names: tuple[str, ...] = ("bubblewrap",)
    start_within_s: float = 10.0
    host_uid: int = 65534
    host_gid: int = 65534
    tenant_uid_first: int = 0x70000000
    oci: OciConfig = OciConfig()
    gvisor: GvisorConfig = GvisorConfig()
    firecracker: FirecrackerConfig = FirecrackerConfig()
    qemu: QemuConfig = QemuConfig()
    kits: str = ""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names must hold at least one runtime")
        if not self.start_within_s > 0:
            raise ValueError("start_within_s must be more than 0 seconds")
        if self.host_uid < 1 or self.host_gid < 1:
            raise ValueError("host_uid and host_gid must not be root's")
        if not _TENANT_UIDS_FROM <= self.tenant_uid_first <= _TENANT_UIDS_TO:
            raise ValueError(f"tenant_uid_first must be from {_TENANT_UIDS_FROM} to {_TENANT_UIDS_TO}")


class OpenRuntime(Runtime, Protocol):
    """A runtime that holds something for all its boxes. ``about``: programs of others that it starts, for people."""

    @property
    def about(self) -> str: ...

    def close(self) -> None:
        """Free it; boxes that run are not touched."""
        ...


def _bubblewrap(home: Home, config: RuntimesConfig) -> OpenRuntime:
    user = HostUser(uid=config.host_uid, gid=config.host_gid)
    return BubblewrapRuntime(home, host_user=user, start_within_s=config.start_within_s)


def _oci(home: Home, config: RuntimesConfig) -> OpenRuntime:
    first = config.tenant_uid_first
    return OciRuntime(home, config.oci, first_user=first, start_within_s=config.start_within_s)


def _gvisor(home: Home, config: RuntimesConfig) -> OpenRuntime:
    first = config.tenant_uid_first
    return GvisorRuntime(home, config.gvisor, first_user=first, start_within_s=config.start_within_s)


def _firecracker(home: Home, config: RuntimesConfig) -> OpenRuntime:
    # memory: few workers offer it, and all of them read this file
    from corral.sandboxes.runtimes.firecracker import FirecrackerRuntime  # noqa: PLC0415

    return FirecrackerRuntime(
        home,
        config.firecracker,
        kits=kits_directory(home, config),
        first_user=config.tenant_uid_first + 3 * IDS_PER_TENANT * TENANTS_MAX,
        start_within_s=config.start_within_s,
    )


def _qemu(home: Home, config: RuntimesConfig) -> OpenRuntime:
    from corral.sandboxes.runtimes.qemu import QemuRuntime  # noqa: PLC0415 (as above)

    return QemuRuntime(
        home,
        config.qemu,
        kits=kits_directory(home, config),
        first_user=config.tenant_uid_first + 2 * IDS_PER_TENANT * TENANTS_MAX,
        start_within_s=config.start_within_s,
    )


def kits_directory(home: Home, config: RuntimesConfig) -> Path:
    """Where guest kits lie: as configured, else beside the sandboxes' own directory."""
    return Path(config.kits) if config.kits else home.directory.parent / "guest"


def _really_really_dangerous(home: Home, config: RuntimesConfig) -> OpenRuntime:
    return ReallyReallyDangerousRuntime(home, start_within_s=config.start_within_s)


KNOWN: Final[Mapping[str, Callable[[Home, RuntimesConfig], OpenRuntime]]] = {
    "bubblewrap": _bubblewrap,
    "oci": _oci,
    "gvisor": _gvisor,
    "firecracker": _firecracker,
    "qemu": _qemu,
    "really_really_dangerous": _really_really_dangerous,
}
MACHINES: Final = frozenset({"qemu", "firecracker"})  # those that boot a kernel of their own, from an image
ABSENT: Final[Mapping[str, str]] = {
    "runhcs-wcow-hypervisor": "it needs Windows with Hyper-V, and Corral's workers run on Linux",
}


def check_name(name: str) -> None:
    """Raises InvalidSpec with one clear sentence when ``name`` is not a runtime that this program can open."""
    if mistake := name_mistake(name):
        raise InvalidSpec(mistake, field="runtime")


def name_mistake(name: str, offered: Iterable[str] = ()) -> str:
    """One clear sentence when ``name`` is neither offered by somebody nor known to this program, else ""."""
    if name in KNOWN or name in offered:
        return ""
    if name in ABSENT:
        return f'runtime: "{name}" is not available: {ABSENT[name]}'
    # the one without walls is never proposed to somebody who mistyped
    proposable = [known for known in (*KNOWN, *ABSENT, *offered) if known != really_really_dangerous.NAME]
    nearest = difflib.get_close_matches(name, proposable, n=1, cutoff=0.5)
    hint = f'did you mean "{nearest[0]}"?' if nearest else f"known are {', '.join(dict.fromkeys((*KNOWN, *offered)))}"
    return f'runtime: there is no runtime "{name[:60]}"; {hint}'


@contextmanager
def open_runtimes(
    config: RuntimesConfig, directory: Path, *, cgroups: Cgroups | None = None
) -> Iterator[dict[str, Runtime]]:
    """The configured runtimes of one worker, by name; ``directory`` is the worker's own, for its sandboxes.

    Stop every box before leaving. Call ``sweep`` of one of them before the first start.

    Raises:
        InvalidSpec: a name is unknown or absent.
        Conflict: another process uses the directory.
        SandboxFailed: a part that a runtime needs is not installed.
    """
    for name in config.names:
        check_name(name)
    with ExitStack() as stack:
        home = stack.enter_context(Home(directory, cgroups=cgroups))
        if soft := set(CONTROLLERS) - home.cgroups.hard:
            _log.warning(
                "limits-are-per-process", limits=",".join(sorted(soft)), why=home.cgroups.why, more="corral doctor"
            )
        opened: dict[str, Runtime] = {}
        for name in dict.fromkeys(config.names):
            if name == really_really_dangerous.NAME:
                _log.warning("really-really-dangerous", gives_up=really_really_dangerous.GIVEN_UP)
            opened[name] = stack.enter_context(closing(KNOWN[name](home, config)))
        yield opened
