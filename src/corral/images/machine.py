"""Decisions about images: what a manifest says, which platform is picked, who is evicted. Pure.

The documents are those of the OCI image specification 1.1 and of Docker's image manifest, version 2, schema 2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from corral.images.model import (
    ImageLimits,
    ImagesConfig,
    ImageSettings,
    Layer,
    Manifest,
    Platform,
    PreparedImage,
    Reference,
    is_digest,
    is_loopback,
    printable,
)
from corral.kernel.errors import InvalidSpec, Refused, TooLarge
from corral.kernel.json import MALFORMED, why_malformed

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LAYER_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_FOREIGN: Final = ("foreign", "nondistributable")
_INDEX_ENTRIES_MAX: Final = 1000


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How one document names another's bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: dict[str, Any] | None = None
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] | None = None

    def mistake(self) -> str:
        """What is wrong with it, or ""."""
        if not is_digest(self.digest):
            return f'"{printable(self.digest)}" is no sha256 digest'
        if not 0 <= self.size < 2**62:
            return f"{self.size} is no size"
        return ""


class Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A manifest or an index, as far as we read it; which of the two, ``media_type`` or its keys say."""

    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None


class _Rootfs(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    diff_ids: tuple[str, ...] = ()


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    Env: tuple[str, ...] | None = None
    Entrypoint: tuple[str, ...] | None = None
    Cmd: tuple[str, ...] | None = None
    WorkingDir: str | None = None
    User: str | None = None


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    rootfs: _Rootfs = _Rootfs()
    config: _Settings | None = None


def read_document(data: bytes, *, subject: str, media_type: str = "") -> Document:
    """A manifest or an index. Raises InvalidSpec for anything else."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except MALFORMED as error:
        raise InvalidSpec(f"{subject}: its manifest is no manifest: {_cause(error)}") from error
    if document.schema_version != 2:
        raise InvalidSpec(f"{subject}: its manifest is of schema version {document.schema_version}; only 2 is known")
    kind = document.media_type or media_type
    both = document.manifests is not None and (document.layers is not None or document.config is not None)
    if (
        both
        or (document.manifests is not None and kind in MANIFEST_TYPES)
        or (document.manifests is None and kind in INDEX_TYPES)
    ):
        raise InvalidSpec(f"{subject}: its manifest claims to be an image and a list of images at once")
    named = () if document.config is None else (document.config,)
    for each in (*(document.manifests or ()), *(document.layers or ()), *named):
        if mistake := each.mistake():
            raise InvalidSpec(f"{subject}: its manifest is wrong: {mistake}")
    return document


def pick(document: Document, platform: Platform, *, subject: str) -> Descriptor:
    """The image for ``platform`` in a list of images.

    Raises InvalidSpec when there is none, or when it is a list itself: lists in lists are not followed.
    """
    entries = document.manifests or ()
    if len(entries) > _INDEX_ENTRIES_MAX:
        raise TooLarge(f"{subject}: lists {len(entries)} images; at most {_INDEX_ENTRIES_MAX} are read")
    offered = []
    for each in entries:
        if each.platform is None:
            continue
        if (each.platform.get("os"), each.platform.get("architecture")) == (platform.os, platform.architecture):
            return _no_list(each, subject)
        offered.append(f"{each.platform.get('os')}/{each.platform.get('architecture')}")
    if len(entries) == 1 and entries[0].platform is None:
        return _no_list(entries[0], subject)
    shown = printable(", ".join(sorted(set(offered)))) or "none"
    raise InvalidSpec(f"{subject}: there is no image for {platform}; it offers {shown}")


def _no_list(descriptor: Descriptor, subject: str) -> Descriptor:
    if descriptor.media_type in INDEX_TYPES:
        raise InvalidSpec(f"{subject}: is a list of images inside a list of images; that is not followed")
    return descriptor


def read_image(
    document: Document, config: bytes, *, digest: str, platform: Platform, limits: ImageLimits, subject: str
) -> Manifest:
    """The image that a manifest and its (verified) configuration describe.

    Raises InvalidSpec for another platform, layers that we do not carry or that do not match the configuration;
    TooLarge for too many layers or bytes.
    """
    layers = document.layers or ()
    _check_layers(layers, limits, subject)
    try:
        read = msgspec.json.decode(config, type=_Config)
    except MALFORMED as error:
        raise InvalidSpec(f"{subject}: its configuration cannot be read: {_cause(error)}") from error
    if (read.os, read.architecture) != (platform.os, platform.architecture):
        named = printable(f"{read.os or '?'}/{read.architecture or '?'}")
        raise InvalidSpec(f"{subject}: is an image for {named}; this worker runs {platform}")
    diff_ids = read.rootfs.diff_ids
    if len(diff_ids) != len(layers) or not all(is_digest(each) for each in diff_ids):
        raise InvalidSpec(
            f"{subject}: its manifest has {len(layers)} layers and its configuration names {len(diff_ids)}"
        )
    settings = read.config or _Settings()
    return Manifest(
        digest=digest,
        platform=platform,
        layers=tuple(
            Layer(digest=layer.digest, size_bytes=layer.size, diff_id=diff_id)
            for layer, diff_id in zip(layers, diff_ids, strict=True)
        ),
        settings=ImageSettings(
            env=settings.Env or (),
            entrypoint=settings.Entrypoint or (),
            command=settings.Cmd or (),
            directory=settings.WorkingDir or "",
            user=settings.User or "",
        ),
    )


def check_documents(sizes: Iterable[int], limits: ImageLimits, subject: str) -> None:
    """Raises TooLarge when a manifest, an index or a configuration is larger than we read."""
    for size in sizes:
        if size > limits.document_bytes:
            raise TooLarge(
                f"{subject}: a manifest or configuration of {size} bytes is over images.limits.document_bytes "
                f"({limits.document_bytes})"
            )


def _check_layers(layers: Sequence[Descriptor], limits: ImageLimits, subject: str) -> None:
    if len(layers) > limits.layers:
        raise TooLarge(f"{subject}: has {len(layers)} layers; images.limits.layers is {limits.layers}")
    for layer in layers:
        if layer.urls or any(word in layer.media_type for word in _FOREIGN):
            raise InvalidSpec(f"{subject}: layer {layer.digest} is a foreign layer, which no registry may give away")
        if layer.media_type not in _LAYER_TYPES:
            raise InvalidSpec(f'{subject}: a layer is of the unknown type "{printable(layer.media_type)}"')
    total = sum(layer.size for layer in layers)
    if total > limits.total_bytes:
        raise TooLarge(f"{subject}: its layers are {total} bytes; images.limits.total_bytes is {limits.total_bytes}")


def _cause(error: Exception) -> str:
    return printable(why_malformed(error))


# ---- policy ----


def located(reference: Reference, config: ImagesConfig) -> tuple[str, str, bool]:
    """Registry, repository, and whether it is plain HTTP; of a reference that the policy allows.

    Raises InvalidSpec when no registry is named or known; Refused when the registry is not allowed.
    """
    registry, repository = reference.registry, reference.repository
    if not registry:
        registry, _, prefix = config.default_registry.partition("/")
        if not registry:
            raise InvalidSpec(
                f"image {reference}: names no registry, and this worker has no default one",
                cure='write "registry:port/name:tag", or set images.default_registry on the worker',
                field="image",
            )
        repository = f"{prefix}/{repository}" if prefix else repository
    elif not config.allows(registry):
        offered = ", ".join((*config.registries, *(("those on loopback",) * config.loopback))) or "none"
        raise Refused(
            f"image {reference}: this worker takes no images from {registry}; it takes them from: {offered}",
            cure="ask the operator to add it to images.registries",
        )
    return registry, repository, is_loopback(registry)


# ---- eviction ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """One image that must go, and why."""

    digest: str
    why: str


def plan_eviction(
    images: Sequence[PreparedImage], busy: frozenset[str], config: ImagesConfig, *, now_s: float
) -> tuple[Eviction, ...]:
    """Whom to evict: what was idle too long, then the least recently used until under the budget.

    Never one that is pinned or in ``busy`` (digests); carried out, it leaves nothing to plan.
    """
    pinned = set(config.pinned)
    free = [
        image
        for image in images
        if image.digest not in busy
        and not image.record.pinned
        and not pinned & {image.digest, *image.record.references}
    ]
    free.sort(key=lambda image: (image.used_s, image.digest))
    held = sum(image.held_bytes for image in images)
    plan = []
    for image in free:
        if now_s - image.used_s > config.idle_s:
            why = "idle"
        elif held > config.budget_bytes:
            why = "budget"
        else:
            continue
        held -= image.held_bytes
        plan.append(Eviction(digest=image.digest, why=why))
    return tuple(plan)
