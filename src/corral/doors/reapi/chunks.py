"""Blobs as chunks: cut where the content says, so that similar blobs share most of their chunks.

The cuts are those of FastCDC 2020 (Xia et al., ieeexplore.ieee.org/document/9055082) with normalization level 2 and
seed 0, a chunk being between a quarter and four times the average; so clients that cut by themselves find the same.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from contextlib import aclosing
from typing import Final

from corral.blobs.content import pieces_of
from corral.blobs.ports import BlobStore
from corral.doors.reapi.failures import no_blob
from corral.doors.reapi.names import is_empty
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound

_SPREAD: Final = 4


async def split(store: BlobStore, tenant: str, blob: Digest, *, average_bytes: int) -> list[Digest]:
    """The chunks of a blob, in order, every one stored. A blob of at most one chunk's size is its own only chunk.

    Raises: NotFound for a blob that is not stored; QuotaExceeded when the chunks do not fit.
    """
    if is_empty(blob):
        return []
    if await store.find_missing(tenant, [blob]):
        raise no_blob(blob)
    if blob.size_bytes <= average_bytes * _SPREAD:
        return [blob]
    chunks: list[Digest] = []
    async with aclosing(store.read(tenant, blob)) as content:
        async for data in cut(content, average_bytes=average_bytes):
            chunk = Digest.of(data, blob.function)
            await store.write(tenant, chunk, pieces_of(data))
            chunks.append(chunk)
    return chunks


async def splice(store: BlobStore, tenant: str, blob: Digest, chunks: Sequence[Digest]) -> None:
    """Store the blob that ``chunks`` make up; one that is stored already is marked as used, with its chunks.

    Raises: NotFound for a chunk that is not stored; InvalidSpec when they make up another blob.
    """
    if (total_bytes := sum(chunk.size_bytes for chunk in chunks)) != blob.size_bytes:
        raise InvalidSpec(
            f"blob_digest: the chunks have {total_bytes} bytes together, and the blob {blob.size_bytes}",
            field="blob_digest",
        )
    missing = await store.find_missing(tenant, {chunk for chunk in chunks if not is_empty(chunk)})
    if missing:
        raise NotFound(f"{len(missing)} chunks are not stored, {min(missing)} among them")
    if not is_empty(blob):
        async with aclosing(_joined(store, tenant, chunks)) as content:
            await store.write(tenant, blob, content)


async def cut(content: AsyncIterable[bytes], *, average_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream. Holds little more than the longest chunk: where one ends depends on no byte after it."""
    longest = average_bytes * _SPREAD
    held = bytearray()
    async for piece in content:
        held += piece
        while len(held) >= longest:
            first = next(_cuts(bytes(held[:longest]), average_bytes))
            yield bytes(held[:first])
            del held[:first]
    start = 0
    for length in _cuts(bytes(held), average_bytes):
        yield bytes(held[start : start + length])
        start += length


def _cuts(data: bytes, average_bytes: int) -> Iterator[int]:
    """The lengths of the chunks of ``data``."""
    # Imported by who needs it: few clients split blobs, and idle memory counts.
    from pyfastcdc import FastCDC  # noqa: PLC0415

    cutter = FastCDC(average_bytes, normalized_chunking=2, seed=0)
    return (chunk.length for chunk in cutter.cut_buf(data))


async def _joined(store: BlobStore, tenant: str, chunks: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        if is_empty(chunk):
            continue
        async with aclosing(store.read(tenant, chunk)) as pieces:
            async for piece in pieces:
                yield piece
