"""Images for tests: built in memory, pushed to a real registry on loopback, or told by one that lies.

``build`` makes images of tar archives; ``DebianRegistry`` is Debian's ``docker-registry``, and ``push`` fills it.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zstandard

from corral.images.model import Platform
from corral.testing.processes import free_ports, wait_until

PROGRAM: Final = "docker-registry"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


def sha256(data: bytes) -> str:
    """``sha256:…`` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of exactly these members, whatever they say."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for each in members:
            info, content = each if isinstance(each, tuple) else (each, b"")
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    """A header."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def file(name: str, content: bytes = b"", *, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """A regular file."""
    info = entry(name, mode=mode)
    info.size = len(content)
    return info, content


def directory(name: str) -> tarfile.TarInfo:
    """A directory."""
    return entry(name, tarfile.DIRTYPE, mode=0o755)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    """A symbolic link."""
    return entry(name, tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    """A hard link."""
    return entry(name, tarfile.LNKTYPE, link=target)


def compress(tar: bytes, how: str) -> bytes:
    """``gzip``, ``zstd`` or ``""``."""
    if how == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(tar)
    return tar


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image as documents and blobs; ``manifest`` is its (or its index's) bytes."""

    manifest: bytes
    media_type: str
    blobs: dict[str, bytes] = field(repr=False)
    further: tuple["BuiltImage", ...] = ()

    @property
    def digest(self) -> str:
        """What names it."""
        return sha256(self.manifest)


def build(
    *layers: bytes,
    how: str = "gzip",
    architecture: str = "amd64",
    settings: dict[str, Any] | None = None,
    diff_ids: Sequence[str] | None = None,
    layer_type: str = "",
) -> BuiltImage:
    """An image of these tar archives."""
    packed = [compress(layer, how) for layer in layers]
    config = json.dumps(
        {
            "os": "linux",
            "architecture": architecture,
            "config": settings or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": list([sha256(layer) for layer in layers] if diff_ids is None else diff_ids),
            },
        }
    ).encode()
    kind = layer_type or _LAYER + (f"+{how}" if how else "")
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": kind, "digest": sha256(each), "size": len(each)} for each in packed],
    }
    return BuiltImage(
        manifest=json.dumps(manifest).encode(),
        media_type=_MANIFEST,
        blobs={sha256(config): config, **{sha256(each): each for each in packed}},
    )


def index_of(**images: BuiltImage) -> BuiltImage:
    """An index of images by architecture."""
    entries = [
        {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.manifest),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, image in images.items()
    ]
    document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
    return BuiltImage(
        manifest=json.dumps(document).encode(), media_type=_INDEX, blobs={}, further=tuple(images.values())
    )


def write_layout(directory: Path, image: BuiltImage, name: str) -> Path:
    """An OCI image layout with one image."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for each in (image, *image.further):
        for digest, data in {**each.blobs, each.digest: each.manifest}.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    named = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return directory


def write_docker_archive(path: Path, name: str, *layers: bytes, architecture: str = "amd64") -> Path:
    """What ``docker save`` writes."""
    config = json.dumps(
        {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()
    names = [f"{sha256(layer)[7:]}/layer.tar" for layer in layers]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    path.write_bytes(
        tar_of(
            file("config.json", config),
            *(file(member, layer) for member, layer in zip(names, layers, strict=True)),
            file("manifest.json", json.dumps(manifest).encode()),
        )
    )
    return path


def host_tree(*programs: str) -> bytes:
    """A small system of the host's own programs (names, or absolute paths), with the libraries that they need."""
    files: dict[str, bytes] = {}
    for name in programs:
        path = name if name.startswith("/") else shutil.which(name)
        assert path is not None, f"{name} is not installed"
        needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for found in (path, *re.findall(r"(/\S+) \(0x", needed)):
            files[found.lstrip("/")] = Path(found).read_bytes()
    tops = {name.partition("/")[0] for name in files}
    links = [symlink(top, os.readlink(f"/{top}")) for top in sorted(tops) if os.path.islink(f"/{top}")]
    real = {
        os.path.realpath(f"/{os.path.dirname(name)}").lstrip("/") + "/" + os.path.basename(name): data
        for name, data in files.items()
    }
    return tar_of(directory("usr"), *links, *(file(name, data, mode=0o755) for name, data in sorted(real.items())))


# ---- a real registry ----


class DebianRegistry:
    """A running ``docker-registry`` on loopback; ``address`` is ``host:port``."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.process = process

    def push(self, name: str, image: BuiltImage, tag: str = "1") -> str:
        """Put an image there; its reference by tag."""
        for further in image.further:
            self.push(name, further, tag=further.digest)
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            for digest, data in image.blobs.items():
                location = self._call(connection, "POST", f"/v2/{name}/blobs/uploads/", b"", {}, 202)
                target = location.removeprefix(f"http://{self.address}")
                joint = "&" if "?" in target else "?"
                headers = {"Content-Type": "application/octet-stream"}
                self._call(connection, "PUT", f"{target}{joint}digest={digest}", data, headers, 201)
            headers = {"Content-Type": image.media_type}
            self._call(connection, "PUT", f"/v2/{name}/manifests/{tag}", image.manifest, headers, 201)
        finally:
            connection.close()
        return f"{self.address}/{name}:{tag}"

    def _call(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: bytes,
        headers: dict[str, str],
        status: int,
    ) -> str:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        said = response.read()
        assert response.status == status, f"{method} {target}: {response.status} {said[:500]!r}"
        return response.getheader("Location") or ""


def why_no_registry() -> str:
    """Why no registry can be started here; "" when one can."""
    return "" if shutil.which(PROGRAM) else f"{PROGRAM} is not installed (Debian package docker-registry)"


@contextmanager
def debian_registry(folder: Path, *, htpasswd: Path | None = None) -> Iterator[DebianRegistry]:
    """Run one that keeps everything below ``folder``."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    lines = [
        "version: 0.1",
        "storage:",
        "  filesystem:",
        f"    rootdirectory: {folder / 'storage'}",
        "http:",
        f"  addr: {address}",
    ]
    if htpasswd is not None:
        lines += ["auth:", "  htpasswd:", "    realm: tests", f"    path: {htpasswd}"]
    configuration, log = folder / "registry.yml", folder / "registry.log"
    configuration.write_text("\n".join(lines) + "\n")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", PROGRAM, "serve", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        wait_until(lambda: _answers(address, process), "a registry", within_s=20, log=log)
        yield DebianRegistry(address, process)
    finally:
        process.kill()
        process.wait()


def _answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the registry ended"
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 401)
    except OSError:
        return False
    finally:
        connection.close()


def this_platform() -> Platform:
    """What images must be for here."""
    return Platform.of_machine(os.uname().machine)
