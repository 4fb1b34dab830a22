"""The OCI bundle of a box: ``config.json`` of the OCI runtime specification 1.0, in a folder of the box's own.

Only what the boxes of Corral need, and nothing of the host: read-only root, bounded tmpfs for everything writable,
own namespaces, masked and read-only parts of /proc, no capability but those that the agent drops again itself.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from corral.sandboxes.model import SandboxSpec, Size
from corral.sandboxes.runtimes import host_root
from corral.sandboxes.runtimes.rootfs import AGENT_INSIDE, Root

_DEV_BYTES: Final = 65536
_NAMESPACES: Final = ("pid", "ipc", "uts", "mount", "cgroup")
MASKED: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore"),
    *("/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/slabinfo", "/proc/sysrq-trigger", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/vmallocinfo", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
# not /proc/sys/user: the agent forbids user namespaces there before it seals itself, and nobody else may write to it
READ_ONLY: Final = (
    *("/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/mtrr", "/proc/tty"),
    *("/proc/sys/abi", "/proc/sys/debug", "/proc/sys/dev", "/proc/sys/fs", "/proc/sys/kernel", "/proc/sys/net"),
    *("/proc/sys/sunrpc", "/proc/sys/vm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What differs between runtimes.

    Attributes:
        arguments: of the agent.
        capabilities: of the agent, until it has sealed itself.
        user_map: (inside, outside) of the one mapped user and group when the runtime shall make a user namespace.
        bounded_files: the tmpfs take ``nr_inodes``.
    """

    arguments: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    user_map: tuple[int, int] | None = None
    bounded_files: bool = True


def write(folder: Path, spec: SandboxSpec, root: Root, shape: Shape) -> None:
    """Write ``config.json`` into ``folder``. Raises OSError."""
    content = msgspec.json.encode(config(spec, root, shape))
    file = os.open(folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(file, "wb") as opened:
        opened.write(content)
        os.fchmod(opened.fileno(), 0o644)


def config(spec: SandboxSpec, root: Root, shape: Shape) -> Mapping[str, Any]:
    """The document that the specification describes."""
    namespaces = [*_NAMESPACES, *([] if spec.network else ["network"]), *(["user"] if shape.user_map else [])]
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in namespaces],
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    }
    if shape.user_map is not None:
        inside, outside = shape.user_map
        mapping = [{"containerID": inside, "hostID": outside, "size": 1}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.host_name,
        "root": {"path": str(root.directory), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": host_root.UID, "gid": host_root.GID},
            "args": [AGENT_INSIDE, *shape.arguments],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {name: shape.capabilities for name in sets},
        },
        "mounts": [*_binds(spec, root), *_system_mounts(spec.size, shape)],
        "linux": linux,
    }


def _system_mounts(size: Size, shape: Shape) -> list[dict[str, Any]]:
    bounds = [f"size={size.disk_bytes}", *([f"nr_inodes={size.files}"] if shape.bounded_files else [])]
    folder = ["nosuid", "nodev", "mode=1777", *bounds]
    return [
        _mount("/proc", "proc", ["nosuid", "nodev", "noexec"]),
        _mount("/dev", "tmpfs", ["nosuid", "noexec", "mode=755", f"size={_DEV_BYTES}"]),
        _mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        _mount("/dev/shm", "tmpfs", folder),
        _mount("/tmp", "tmpfs", folder),
        _mount("/work", "tmpfs", folder),
    ]


def _binds(spec: SandboxSpec, root: Root) -> list[dict[str, Any]]:
    pairs = list(root.binds)
    if spec.network:
        pairs += [(file, file) for file in host_root.RESOLVER_FILES if Path(file).is_file() and _held(root, file)]
    options = ["rbind", "ro", "nosuid", "nodev"]
    return [{"destination": inside, "type": "bind", "source": source, "options": options} for source, inside in pairs]


def _held(root: Root, file: str) -> bool:
    """Whether there is a mount point for ``file``, in the skeleton or in what is bound over it."""
    top = f"/{file.split('/')[1]}"
    source = dict((inside, source) for source, inside in root.binds).get(top)
    return (Path(source).parent / file.lstrip("/") if source else root.directory / file.lstrip("/")).is_file()


def _mount(path: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": path, "type": kind, "source": kind, "options": options}
