"""A root directory made of the host's own programs: /usr read-only, and an /etc with nothing private in it.

Built once per worker below its sandbox directory; every box binds it read-only, so a box costs two mounts for its
root instead of a dozen.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM_DIRECTORIES: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
MOUNT_POINTS: Final = ("usr", "proc", "dev", "tmp", "work", "etc")
SHOWN: Final = "work"  # a box with a root of its own finds that root here on its way in; empty otherwise
ETC_FILES: Final = (
    *("debian_version", "gai.conf", "host.conf", "ld.so.cache", "ld.so.conf", "localtime", "mime.types"),
    *("nsswitch.conf", "os-release", "protocols", "services", "shells", "timezone", "ssl/openssl.cnf"),
)
ETC_DIRECTORIES: Final = (
    *("alternatives", "fonts", "ld.so.conf.d", "perl", "terminfo"),
    *("ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted"),
)
ETC_PATTERNS: Final = ("java*",)
UID: Final = 1000  # inside a box, whoever it is outside
GID: Final = 1000
PASSWD: Final = (
    f"root:x:0:0:root:/:/usr/sbin/nologin\n"
    f"work:x:{UID}:{GID}:work:/work:/bin/sh\n"
    f"nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
)
GROUP: Final = f"root:x:0:\nwork:x:{GID}:\nnogroup:x:65534:\n"
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
RESOLVER_FILES: Final = ("/etc/resolv.conf", "/etc/hosts")  # the host's own, for boxes with its network


@dataclass(frozen=True, slots=True)
class HostRoot:
    """``directory`` holds symlinks, /etc and mount points; ``binds`` are host directories to bind over it."""

    directory: Path
    binds: tuple[str, ...]


def build(directory: Path, *, host: Path = Path("/")) -> HostRoot:
    """Make (again) the root at ``directory`` from the system at ``host``."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o755, parents=True)
    for name in MOUNT_POINTS:
        (directory / name).mkdir(mode=0o755)
    binds = ["/usr"]
    for name in SYSTEM_DIRECTORIES:
        source = host / name
        if source.is_symlink():  # merged /usr
            (directory / name).symlink_to(source.readlink())
        elif source.is_dir():
            (directory / name).mkdir(mode=0o755)
            binds.append(f"/{name}")
    _build_etc(host / "etc", directory / "etc")
    return HostRoot(directory, tuple(binds))


def _build_etc(source: Path, etc: Path) -> None:
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    (etc / "hosts").write_text(_HOSTS)
    (etc / "resolv.conf").write_text("")
    (etc / "mtab").symlink_to("/proc/self/mounts")
    for name in ETC_FILES:
        with suppress(FileNotFoundError, PermissionError):
            (etc / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, etc / name)
    patterns = [path.name for pattern in ETC_PATTERNS for path in source.glob(pattern) if path.is_dir()]
    for name in (*ETC_DIRECTORIES, *patterns):
        if (source / name).is_dir():
            shutil.copytree(source / name, etc / name, symlinks=True, dirs_exist_ok=True, ignore=_unreadable)
    for folder, _, files in os.walk(etc):
        Path(folder).chmod(0o755)
        for file in files:
            if not (path := Path(folder, file)).is_symlink():
                path.chmod(0o644)


def _unreadable(folder: str, names: list[str]) -> list[str]:
    """What stays out of a copied directory: secrets, and whatever is neither file, directory nor link."""
    kept = []
    for name in names:
        path = Path(folder, name)
        regular = path.is_symlink() or path.is_file() or path.is_dir()
        if regular and (path.is_symlink() or os.stat(path).st_mode & 0o004):
            kept.append(name)
    return [name for name in names if name not in kept]
