"""GetTree: every directory below a root, once, in pages.

The order is breadth first and depends on the tree alone, so a page token is just how many directories were told.
"""

from collections.abc import AsyncGenerator
from typing import Final

from google.protobuf.message import DecodeError

from corral.actions.adapters.messages import digest_from
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobReader
from corral.doors.reapi.failures import no_blob
from corral.doors.reapi.names import is_empty
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, TooLarge
from corral.wire.reapi import remote_execution_pb2 as reapi

_DIRECTORY_BYTES_MAX: Final = 16 * 1024**2
_PAGE_DIRECTORIES: Final = 1000


async def pages(
    store: BlobReader,
    tenant: str,
    root: Digest,
    *,
    page_size: int,
    page_token: str,
    page_bytes: int,
    directories_max: int,
) -> AsyncGenerator[reapi.GetTreeResponse, None]:
    """The tree in answers of about ``page_bytes`` and at most ``page_size`` directories.

    Raises: NotFound for a root that is not stored; InvalidSpec for bytes that are no directory, or a bad token;
    TooLarge for more than ``directories_max``. A directory below the root that is not stored is left out.
    """
    skip = _skipped(page_token)
    if page_size < 0:
        raise InvalidSpec("page_size: must not be negative", field="page_size")
    per_page = min(page_size or _PAGE_DIRECTORIES, _PAGE_DIRECTORIES)
    told, page, held_bytes = 0, reapi.GetTreeResponse(), 0
    async for directory in _walk(store, tenant, root, directories_max):
        told += 1
        if told <= skip:
            continue
        size = directory.ByteSize()
        if page.directories and (held_bytes + size > page_bytes or len(page.directories) >= per_page):
            page.next_page_token = str(told - 1)
            yield page
            page, held_bytes = reapi.GetTreeResponse(), 0
        page.directories.append(directory)
        held_bytes += size
    yield page


async def _walk(
    store: BlobReader, tenant: str, root: Digest, directories_max: int
) -> AsyncGenerator[reapi.Directory, None]:
    seen, level, count = {root}, [root], 0
    while level:
        below: list[Digest] = []
        for digest in level:
            directory = await _directory(store, tenant, digest)
            if directory is None:
                if digest == root:
                    raise no_blob(root)
                continue
            count += 1
            if count > directories_max:
                raise TooLarge(f"the tree has more than {directories_max} directories", limit="reapi.tree_directories")
            yield directory
            for node in directory.directories:
                child = digest_from(node.digest, root.function, "directories.digest")
                if child not in seen:
                    seen.add(child)
                    below.append(child)
        level = below


async def _directory(store: BlobReader, tenant: str, digest: Digest) -> reapi.Directory | None:
    if is_empty(digest):
        return reapi.Directory()
    try:
        data = await read_bytes(store, tenant, digest, bytes_max=_DIRECTORY_BYTES_MAX)
    except NotFound:
        return None
    try:
        return reapi.Directory.FromString(data)
    except DecodeError:
        raise InvalidSpec(f"the blob {digest} is not an encoded Directory", field="root_digest") from None


def _skipped(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or len(token) > 9:
        raise InvalidSpec(f'page_token: "{token[:80]}" did not come from this scheduler', field="page_token")
    return int(token)
