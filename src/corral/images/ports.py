"""The ports of images: where an image's bytes come from, and who hands out prepared images."""

from collections.abc import Callable, Iterator
from typing import Protocol

from corral.images.model import Layer, PreparedImage, Progress

OnProgress = Callable[[Progress], None]


class ImageSource(Protocol):
    """One place that holds images. Blocking, for a thread or a process of its own; not for two at once."""

    def document(self, wanted: str, *, bytes_max: int) -> tuple[bytes, str]:
        """A manifest or index by tag or digest, and the media type that its holder gives it ("" when unknown).

        With a digest the bytes match it.

        Raises: NotFound, BlobCorrupt, TooLarge, Unauthenticated, Refused, StoreUnavailable, InvalidSpec.
        """
        ...

    def blob(self, digest: str, size_bytes: int) -> bytes:
        """A small blob, whole; the bytes match. Raises as ``document``."""
        ...

    def layer(self, layer: Layer) -> Iterator[bytes]:
        """A layer's bytes as they travel, in pieces; never more than its size. Not verified: the reader does that.

        Raises (on iteration): as ``document``.
        """
        ...

    def close(self) -> None:
        """Free connections and files; idempotent."""
        ...


class ImageLease(Protocol):
    """An image that nobody evicts until it is released."""

    @property
    def image(self) -> PreparedImage:
        """The image."""
        ...

    def release_nowait(self) -> None:
        """Idempotent."""
        ...
