"""From a place to what reads it, and from a name there to a verified manifest. Blocking."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from corral.images.adapters.local import ArchiveSource, LayoutSource
from corral.images.adapters.registry import RegistrySource
from corral.images.machine import check_documents, pick, read_document, read_image
from corral.images.model import ImageLimits, LayoutPlace, Manifest, Place, Platform, RegistryPlace
from corral.images.ports import ImageSource
from corral.kernel.errors import InvalidSpec


@contextmanager
def open_source(place: Place, *, subject: str, limits: ImageLimits) -> Iterator[ImageSource]:
    """What reads ``place``; ``subject`` names the image in errors. Raises NotFound, InvalidSpec, StoreUnavailable."""
    source: ImageSource
    if isinstance(place, RegistryPlace):
        source = RegistrySource(place, subject=subject, stall_s=limits.stall_s, tries=limits.tries)
    elif isinstance(place, LayoutPlace):
        source = LayoutSource(place.path, subject=subject)
    else:
        source = ArchiveSource(place.path, subject=subject)
    try:
        yield source
    finally:
        source.close()


def resolve(place: Place, wanted: str, platform: Platform, *, subject: str, limits: ImageLimits) -> Manifest:
    """The image that ``wanted`` names at ``place``, for ``platform``; its documents verified.

    Raises as ``ImageSource.document``, and InvalidSpec when it is no image that we run.
    """
    with open_source(place, subject=subject, limits=limits) as source:
        data, kind = source.document(wanted, bytes_max=limits.document_bytes)
        document = read_document(data, subject=subject, media_type=kind)
        if document.manifests is not None:
            chosen = pick(document, platform, subject=subject)
            data, kind = source.document(chosen.digest, bytes_max=limits.document_bytes)
            document = read_document(data, subject=subject, media_type=kind)
            if document.manifests is not None:
                raise InvalidSpec(f"{subject}: is a list of images inside a list of images; that is not followed")
        if document.config is None or document.layers is None:
            raise InvalidSpec(f"{subject}: its manifest has no configuration or no layers")
        check_documents([document.config.size], limits, subject)
        config = source.blob(document.config.digest, document.config.size)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return read_image(document, config, digest=digest, platform=platform, limits=limits, subject=subject)
