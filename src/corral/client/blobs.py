"""The caller's namespace of the blob store, over REST; the token decides the tenant."""

from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable
from itertools import islice
from typing import Final

from corral.client.connection import Connection
from corral.client.model import Digests
from corral.kernel.digest import Digest
from corral.kernel.errors import Refused

_BATCH: Final = 2000


class RestBlobs:
    """A ``blobs.ports.BlobStore``; the ``tenant`` arguments are for the port's sake and are not sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        """See the port."""
        asked = iter([str(digest) for digest in digests])
        missing: list[str] = []
        while batch := tuple(islice(asked, _BATCH)):
            answer = await self._connection.call("POST", "/blobs/find-missing", Digests, body=Digests(digests=batch))
            missing.extend(answer.digests)
        return frozenset(Digest.parse(text) for text in missing)

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See the port."""
        query = {"offset": offset or None, "length": length}
        async with self._connection.stream("GET", f"/blobs/{digest}", query=query) as body:
            async for piece in body.pieces():
                yield piece

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        """See the port."""
        headers = {"content-length": str(digest.size_bytes), "content-type": "application/octet-stream"}
        async with self._connection.stream(
            "PUT", f"/blobs/{digest}", headers=headers, content=content, idle_s=600.0
        ) as body:
            async for _ in body.pieces():
                pass

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        """Always Refused: other tasks may use the blobs; eviction removes what nobody uses."""
        raise Refused("blobs cannot be deleted by a client; what is not used is evicted by age")
