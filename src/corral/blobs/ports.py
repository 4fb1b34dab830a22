"""The ports of a blob store.

A *blob* is bytes named by their digest; a *tenant* is a namespace that never sees another's. Every method takes
the tenant first. A blob is visible only when complete and verified: a reader never sees half of it.
``BlobStore`` is what the rest of Corral uses; adapters: memory, disk, object store, and the ordered tiers over them.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable
from typing import Protocol

from corral.blobs.model import CleanReport, StoreUsage
from corral.kernel.digest import Digest


class BlobReader(Protocol):
    """The reading half."""

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        """The digests that this store does not hold. A digest *not* returned is marked as used now.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        ...

    def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Stream a blob, in pieces of at most 1 MiB; ``length`` None means to the end, and a range beyond
        the end is cut there. Marks it as used. In a whole read the last piece comes only after the hash was checked.

        Raises (on iteration):
            NotFound: no such blob in this tenant.
            BlobCorrupt: a whole read whose bytes do not match the digest; the blob is removed.
            StoreUnavailable: the store failed midway.
        Cancellation: safe; close the generator (``contextlib.aclosing``) when leaving it early.
        """
        ...


class BlobWriter(Protocol):
    """The writing half."""

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        """Store ``content`` under ``digest``; present already: returns without reading all of ``content``.

        Bounded memory at any size; verified while written; concurrent writers of one digest collapse.

        Raises:
            InvalidSpec: hash or size of ``content`` differ from ``digest``; nothing is stored.
            TooLarge: over the store's limit for one blob.
            QuotaExceeded: over the tenant's quota, or the disk is full; nothing is stored.
            StoreUnavailable: the store failed; nothing is visible.
        Cancellation: nothing becomes visible, what was written so far is removed.
        """
        ...

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        """Forget blobs; absent ones are no error."""
        ...


class BlobJanitor(Protocol):
    """Upkeep of a store that keeps bytes itself."""

    async def clean(self, *, now_s: float) -> CleanReport:
        """Evict by last use: what is older than the age limit, then the oldest until under the byte budget."""
        ...

    async def usage(self, tenant: str | None = None) -> StoreUsage:
        """Blobs and bytes held, of one tenant or of all."""
        ...


class BlobStore(BlobReader, BlobWriter, Protocol):
    """Reader and writer."""
