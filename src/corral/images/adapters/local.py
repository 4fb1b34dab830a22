"""Images on this machine: OCI image layout directories, and what ``docker save`` wrote."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from corral.images.machine import MANIFEST_TYPES, read_document
from corral.images.model import Layer, is_digest, printable
from corral.images.streams import PIECE, verified
from corral.kernel.errors import InvalidSpec, NotFound, StoreUnavailable, TooLarge

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_FULL_NAME: Final = "io.containerd.image.name"
_MEMBERS_MAX: Final = 10_000


class LayoutSource:
    """See ``ports.ImageSource``. ``wanted`` is a digest or the name of a manifest in ``index.json``; "latest" also
    means the only one."""

    def __init__(self, path: str, *, subject: str) -> None:
        self._path = Path(path)
        self._subject = subject
        if not (self._path / "oci-layout").is_file():
            raise NotFound(f"{subject}: {path} is no OCI image layout: it has no file oci-layout")

    def document(self, wanted: str, *, bytes_max: int) -> tuple[bytes, str]:
        if is_digest(wanted):
            data = self._read(self._blob_path(wanted), bytes_max)
            return b"".join(verified(iter([data]), wanted, None, what=f"{self._subject}: its manifest")), ""
        index = read_document(self._read(self._path / "index.json", bytes_max), subject=self._subject)
        entries = index.manifests or ()
        for each in entries:
            names = each.annotations or {}
            if wanted in (names.get(_REF_NAME), names.get(_FULL_NAME)):
                return self.document(each.digest, bytes_max=bytes_max)
        if wanted == "latest" and len(entries) == 1:
            return self.document(entries[0].digest, bytes_max=bytes_max)
        known = printable(", ".join((each.annotations or {}).get(_REF_NAME, each.digest) for each in entries[:10]))
        raise NotFound(f'{self._subject}: the layout has no image "{printable(wanted)}"; it has: {known or "none"}')

    def blob(self, digest: str, size_bytes: int) -> bytes:
        data = self._read(self._blob_path(digest), size_bytes)
        return b"".join(verified(iter([data]), digest, size_bytes, what=f"{self._subject}: its configuration"))

    def layer(self, layer: Layer) -> Iterator[bytes]:
        with self._open(self._blob_path(layer.digest)) as file:
            while piece := file.read(PIECE):
                yield piece

    def close(self) -> None:
        """Nothing stays open between two calls."""

    def _blob_path(self, digest: str) -> Path:
        return self._path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _read(self, path: Path, bytes_max: int) -> bytes:
        with self._open(path) as file:
            data = file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise TooLarge(f"{self._subject}: {path.name} is longer than {bytes_max} bytes")
        return data

    def _open(self, path: Path) -> IO[bytes]:
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"{self._subject}: the layout has no {path.relative_to(self._path)}") from error
        except OSError as error:
            raise StoreUnavailable(f"{self._subject}: {path} cannot be read: {error.strerror}") from error


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class ArchiveSource:
    """See ``ports.ImageSource``. An archive has no manifest: one is made from the configuration and the layers, the
    same one every time, so that the image has a digest."""

    def __init__(self, path: str, *, subject: str) -> None:
        self._subject = subject
        try:
            self._file = open(path, "rb")
        except FileNotFoundError as error:
            raise NotFound(f"{subject}: there is no file {path}") from error
        except OSError as error:
            raise StoreUnavailable(f"{subject}: {path} cannot be read: {error.strerror}") from error
        try:
            self._members = self._listed()
            self._saved = self._manifest()
        except BaseException:
            self._file.close()
            raise
        self._places: dict[str, str] = {}
        self._config: tuple[str, bytes] = ("", b"")

    def document(self, wanted: str, *, bytes_max: int) -> tuple[bytes, str]:
        saved = self._chosen(wanted)
        config = self._read(saved.config, bytes_max)
        name = f"sha256:{hashlib.sha256(config).hexdigest()}"
        self._config = (name, config)
        try:
            diff_ids = msgspec.json.decode(config)["rootfs"]["diff_ids"]
            pairs = list(zip(saved.layers, diff_ids, strict=True))
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            raise InvalidSpec(f"{self._subject}: its configuration does not name its layers") from error
        layers = []
        for member, diff_id in pairs:
            _, size = self._member(member)
            if not isinstance(diff_id, str) or not is_digest(diff_id):
                raise InvalidSpec(f"{self._subject}: its configuration does not name its layers")
            self._places[diff_id] = member
            layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size})
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": name,
                "size": len(config),
            },
            "layers": layers,
        }
        return msgspec.json.encode(document, order="deterministic"), MANIFEST_TYPES[0]

    def blob(self, digest: str, size_bytes: int) -> bytes:
        del size_bytes
        name, data = self._config
        assert name == digest, "document comes first, and it made this name"
        return data

    def layer(self, layer: Layer) -> Iterator[bytes]:
        if layer.digest not in self._places:
            self.document(
                "latest" if len(self._saved) == 1 else self._holder(layer), bytes_max=layer.size_bytes + 2**24
            )
        offset, size = self._member(self._places[layer.digest])
        while size:
            self._file.seek(offset)
            piece = self._file.read(min(size, PIECE))
            if not piece:
                raise InvalidSpec(f"{self._subject}: the archive ends in the middle of a layer")
            offset, size = offset + len(piece), size - len(piece)
            yield piece

    def close(self) -> None:
        self._file.close()

    def _holder(self, layer: Layer) -> str:
        """The name of an image of this archive that has ``layer``."""
        for saved in self._saved:
            config = msgspec.json.decode(self._read(saved.config, 2**24))
            if layer.digest in config.get("rootfs", {}).get("diff_ids", ()):
                return (saved.repo_tags or (saved.config,))[0]
        raise NotFound(f"{self._subject}: the archive has no layer {layer.digest}")

    def _chosen(self, wanted: str) -> _Saved:
        if is_digest(wanted):
            raise InvalidSpec(f"{self._subject}: images in an archive of docker save are named by tag, not by digest")
        for saved in self._saved:
            tags = saved.repo_tags or ()
            if wanted == saved.config or any(tag == wanted or tag.endswith(f"/{wanted}") for tag in tags):
                return saved
        if wanted == "latest" and len(self._saved) == 1:
            return self._saved[0]
        known = printable(", ".join(tag for saved in self._saved for tag in saved.repo_tags or ()))
        raise NotFound(f'{self._subject}: the archive has no image "{printable(wanted)}"; it has: {known or "no tags"}')

    def _listed(self) -> dict[str, tuple[int, int, str]]:
        """Name -> (offset, size, target of a link); one pass over the headers."""
        found: dict[str, tuple[int, int, str]] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if len(found) >= _MEMBERS_MAX:
                        raise TooLarge(f"{self._subject}: the archive has more than {_MEMBERS_MAX} members")
                    if member.isreg():
                        found[member.name] = (member.offset_data, member.size, "")
                    elif member.issym() or member.islnk():
                        found[member.name] = (0, 0, member.linkname if member.islnk() else _beside(member))
        except (tarfile.TarError, EOFError) as error:
            raise InvalidSpec(
                f"{self._subject}: is no archive of docker save: {error}",
                cure="if it is compressed, decompress it first: gunzip FILE",
            ) from error
        return found

    def _manifest(self) -> tuple[_Saved, ...]:
        if "manifest.json" not in self._members:
            raise InvalidSpec(f"{self._subject}: is no archive of docker save: it has no manifest.json")
        try:
            return msgspec.json.decode(self._read("manifest.json", 2**22), type=tuple[_Saved, ...])
        except msgspec.DecodeError as error:
            raise InvalidSpec(f"{self._subject}: its manifest.json cannot be read: {error}") from error

    def _member(self, name: str) -> tuple[int, int]:
        for _ in range(8):
            if name not in self._members:
                raise InvalidSpec(f'{self._subject}: the archive has no "{printable(name)}", which its manifest names')
            offset, size, target = self._members[name]
            if not target:
                return offset, size
            name = target
        raise InvalidSpec(f"{self._subject}: the archive has links in a circle")

    def _read(self, name: str, bytes_max: int) -> bytes:
        offset, size = self._member(name)
        if size > bytes_max:
            raise TooLarge(f"{self._subject}: {printable(name)} is longer than {bytes_max} bytes")
        self._file.seek(offset)
        return self._file.read(size)


def _beside(member: tarfile.TarInfo) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
