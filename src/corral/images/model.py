"""The nouns of images: references, manifests, limits, what is prepared and how far a preparation is.

An *image* is named by the SHA-256 of its manifest for one platform (``sha256:<64 hex>``); a tag only points at one.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from corral.kernel.errors import InvalidSpec

MIB: Final = 1024**2
GIB: Final = 1024**3
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REGISTRY: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})|\[[0-9a-fA-F:]{2,45}\])(?::[0-9]{1,5})?")
_REFERENCE_MAX: Final = 512


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is ``sha256:`` and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How people name an image: ``[registry[:port]/]name[:tag][@sha256:…]``, or ``sha256:…`` alone for one that is
    prepared already. With a digest the tag is only a comment.

    Attributes:
        registry: ``host[:port]``; "" when the reference names none.
        repository: "" for a digest alone.
        digest: "" when only a tag is known.
    """

    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidSpec with one sentence when ``text`` is not a reference."""
        shown = printable(text)
        if not text or len(text) > _REFERENCE_MAX:
            raise InvalidSpec(f'image: "{shown}" is no reference; write "name:tag", "name@sha256:…" or "registry/name"')
        if is_digest(text):
            return cls(digest=text)
        name, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise InvalidSpec(f'image: "{shown}" has no digest after "@"; one is "sha256:" and 64 hex digits')
        registry, slash, rest = name.partition("/")
        if not slash or not (set(registry) & set(".:[") or registry == "localhost"):
            registry, rest = "", name
        repository, colon, tag = rest.partition(":")
        if registry and not _registry_is_right(registry):
            raise InvalidSpec(f'image: "{printable(registry)}" in "{shown}" is no registry; one is "host:port"')
        if _REPOSITORY.fullmatch(repository) is None:
            raise InvalidSpec(
                f'image: "{shown}" has no right name; names are lower-case letters, digits, ".", "_", "-"'
            )
        if colon and _TAG.fullmatch(tag) is None:
            raise InvalidSpec(f'image: "{shown}" has no right tag; tags are letters, digits, ".", "_" and "-"')
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)

    @property
    def wanted(self) -> str:
        """What to ask a registry for: the digest when there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        if not self.repository:
            return self.digest
        name = f"{self.registry}/{self.repository}" if self.registry else self.repository
        tag = self.tag or ("" if self.digest else "latest")
        return name + (f":{tag}" if tag else "") + (f"@{self.digest}" if self.digest else "")


def _registry_is_right(registry: str) -> bool:
    if _REGISTRY.fullmatch(registry) is None:
        return False
    port = registry.rpartition(":")[2] if not registry.endswith("]") and ":" in registry else ""
    return not port or 0 < int(port) < 65536


def is_loopback(registry: str) -> bool:
    """Tell whether ``host[:port]`` is this machine itself, by its spelling; no name is looked up."""
    host = registry if registry.endswith("]") else registry.rpartition(":")[0] or registry
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def printable(text: str, characters_max: int = 120) -> str:
    """Other people's text, cut and without control characters, for a message."""
    shown = text[:characters_max].encode("ascii", "backslashreplace").decode()
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)
    return shown + ("…" if len(text) > characters_max else "")


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an image runs on, in the words of OCI: ``linux/amd64``, ``linux/arm64``."""

    os: str = "linux"
    architecture: str = "amd64"

    @classmethod
    def of_machine(cls, machine: str) -> Self:
        """From ``uname -m``. Raises InvalidSpec for one that no image of ours could run on."""
        names = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
        if machine not in names:
            raise InvalidSpec(f'platform: there are no images for "{printable(machine)}"; known are amd64 and arm64')
        return cls(architecture=names[machine])

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Guards for one preparation; exceeding one ends it with TooLarge that names the limit.

    Attributes:
        total_bytes: all layers together, decompressed, and all files with their holes.
        file_bytes: the largest single file.
        entries: entries of all layers together, and directories that only a path names.
        depth: directories above a file.
        layers: layers of one image.
        document_bytes: the largest manifest, index or configuration.
        memory_bytes: address space of the process that unpacks.
        prepare_within_s: longest preparation of one image, from the first byte to the last.
        stall_s: longest silence of a registry.
        tries: how often a transfer is taken up again where it broke off.
    """

    total_bytes: int = 16 * GIB
    file_bytes: int = 8 * GIB
    entries: int = 1_000_000
    depth: int = 128
    layers: int = 128
    document_bytes: int = 4 * MIB
    memory_bytes: int = 1 * GIB
    prepare_within_s: float = 900.0
    stall_s: float = 30.0
    tries: int = 3

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        if self.memory_bytes < 256 * MIB:
            raise ValueError("memory_bytes must be at least 256 MiB: the process itself needs that")


class ImagesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images a worker runs, and how many it keeps.

    Attributes:
        registries: registries that may be named, as ``host`` or ``host:port``; reached by HTTPS.
        loopback: whether registries on this machine may be named too; they are reached by plain HTTP.
        default_registry: for names without one, as ``host[:port][/prefix]``; "" refuses such names.
        directory: where prepared images lie; "" is ``images`` in the data directory.
        credentials_file: a docker ``config.json``; "" is ``$DOCKER_CONFIG`` or ``~/.docker``.
        platform: ``linux/amd64`` or ``linux/arm64``; "" is this machine's.
        setid: what becomes of set-user-id and set-group-id bits, ``strip`` or ``refuse``.
        pinned: references or digests that no cleaning evicts.
        idle_s: an image that nobody used for so long is evicted.
        budget_bytes: beyond it the images that were not used for longest are evicted.
        keep_free_bytes: a preparation that would leave less free on the disk ends.
        clean_every_s: how often that is looked at.
        tag_ttl_s: how long an answer "this tag is that digest" is believed.
        patience_s: a registry that cannot be reached is asked again for so long by what needs an image.
        preparing: preparations at the same time.
        limits: guards for one preparation.
    """

    registries: tuple[str, ...] = ()
    loopback: bool = True
    default_registry: str = ""
    directory: str = ""
    credentials_file: str = ""
    platform: str = ""
    setid: str = "strip"
    pinned: tuple[str, ...] = ()
    idle_s: float = 86_400.0
    budget_bytes: int = 64 * GIB
    keep_free_bytes: int = 256 * MIB
    clean_every_s: float = 300.0
    tag_ttl_s: float = 1.0
    patience_s: float = 30.0
    preparing: int = 2
    limits: ImageLimits = ImageLimits()

    def __post_init__(self) -> None:
        if self.setid not in ("strip", "refuse"):
            raise ValueError(f'setid: "{self.setid}" is neither "strip" nor "refuse"')
        if self.platform not in ("", "linux/amd64", "linux/arm64"):
            raise ValueError(f'platform: "{self.platform}" is neither "linux/amd64" nor "linux/arm64"')
        for registry in self.registries:
            if not _registry_is_right(registry):
                raise ValueError(f'registries: "{registry}" is no registry; write "host" or "host:port"')
        if self.directory and not self.directory.startswith("/"):
            raise ValueError(f'directory: "{self.directory}" is not an absolute path')
        if self.preparing < 1:
            raise ValueError("preparing must be at least 1")
        if self.budget_bytes < 0 or self.keep_free_bytes < 0 or self.tag_ttl_s < 0 or self.patience_s < 0:
            raise ValueError("budget_bytes, keep_free_bytes, tag_ttl_s and patience_s must not be negative")
        if not (self.idle_s > 0 and self.clean_every_s > 0):
            raise ValueError("idle_s and clean_every_s must be above 0 seconds")
        for reference in self.pinned:
            Reference.parse(reference)

    def allows(self, registry: str) -> bool:
        """Tell whether images may come from ``registry``."""
        return registry in self.registries or (self.loopback and is_loopback(registry))


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: the digest and size of its bytes as they travel, and the digest of the tar inside."""

    digest: str
    size_bytes: int
    diff_id: str


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of the process that it was made for."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    directory: str = ""
    user: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image of one platform, everything about it verified but its layers."""

    digest: str
    platform: Platform
    layers: tuple[Layer, ...]
    settings: ImageSettings = ImageSettings()

    @property
    def size_bytes(self) -> int:
        """What travels."""
        return sum(layer.size_bytes for layer in self.layers)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are to a registry; empty is nobody. An identity token is the password of user ``<token>``."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class RegistryPlace(msgspec.Struct, frozen=True, kw_only=True, tag="registry"):
    """Where an image lies: a repository of a registry. ``insecure`` is plain HTTP."""

    registry: str
    repository: str
    insecure: bool = False
    credentials: Credentials = Credentials()


class LayoutPlace(msgspec.Struct, frozen=True, kw_only=True, tag="oci"):
    """Where an image lies: an OCI image layout directory on this machine."""

    path: str


class ArchivePlace(msgspec.Struct, frozen=True, kw_only=True, tag="docker-archive"):
    """Where an image lies: what ``docker save`` wrote, on this machine."""

    path: str


Place = RegistryPlace | LayoutPlace | ArchivePlace


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What an unpacked image adds up to."""

    size_bytes: int = 0
    entries: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far a preparation is.

    Attributes:
        stage: unreachable (the registry, for the ``reason``, and it is asked again), waiting, unpacking or finishing.
        done_bytes, total_bytes: of what travels.
    """

    stage: str
    reason: str = ""
    layer: int = 0
    layers: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    entries: int = 0


class Unpacked(msgspec.Struct, frozen=True, kw_only=True, tag="unpacked"):
    """The last word of a process that unpacked everything."""

    tally: Tally


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The last word of a process that did not; ``code`` is of ``kernel.errors``."""

    code: str
    message: str
    cure: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process that unpacks is told: whence, what, whereto, how much. ``subject`` names the image in errors."""

    subject: str
    place: Place
    manifest: Manifest
    directory: str
    limits: ImageLimits
    setid: str
    keep_free_bytes: int


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a prepared image.

    Attributes:
        references: by which it was asked for.
        pinned: no cleaning evicts it.
        shared: an operator put it here: every tenant of this worker may name it by its digest alone.
    """

    digest: str
    platform: Platform
    size_bytes: int
    entries: int
    layers: int
    prepared_s: float
    settings: ImageSettings = ImageSettings()
    references: tuple[str, ...] = ()
    pinned: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """An image that is ready.

    Attributes:
        root: its unpacked, read-only directory.
        used_s: Unix time of the last use.
        disk_bytes: size of the file from which virtual machines boot it; 0 when none has been made.
    """

    record: ImageRecord
    root: str
    used_s: float
    disk_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """What it takes of the disk."""
        return self.record.size_bytes + self.disk_bytes

    @property
    def digest(self) -> str:
        """Its name."""
        return self.record.digest
