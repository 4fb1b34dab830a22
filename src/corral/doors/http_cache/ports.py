"""The ports of the HTTP caches."""

from dataclasses import dataclass
from typing import Protocol

from corral.kernel.digest import Digest


@dataclass(frozen=True, slots=True)
class Entry:
    """A name that stands for content. ``stored_s`` and ``used_s`` are Unix seconds."""

    digest: Digest
    stored_s: float
    used_s: float


class Entries(Protocol):
    """The index: names to digests, per tenant. The content is in the blob store and may go away by itself."""

    async def get(self, tenant: str, name: str) -> Entry | None:
        """What a name stands for. Raises StoreUnavailable."""
        ...

    async def put(self, tenant: str, name: str, entry: Entry) -> None:
        """Let a name stand for something, whatever it stood for; durable when this returns. Raises StoreUnavailable."""
        ...

    async def touch(self, tenant: str, name: str, *, used_s: float) -> None:
        """Record a use. Raises StoreUnavailable."""
        ...

    async def remove(self, tenant: str, name: str, *, digest: Digest | None = None) -> bool:
        """Forget a name, if ``digest`` is given only while it stands for that; whether it did.

        Raises StoreUnavailable.
        """
        ...

    async def forget(self, *, before_s: float, limit: int) -> int:
        """Forget at most ``limit`` names that were last used before then; how many. Raises StoreUnavailable."""
        ...
