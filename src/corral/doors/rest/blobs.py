"""The caller's part of the blob store: what is missing, put, get."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Final

from litestar import Controller, Request, Response, get, post, put
from litestar.params import Body, PathParameter, QueryParameter
from litestar.response import Stream

from corral.client.model import Digests
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Services
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, TooLarge

_ASKED_MAX: Final = 10_000

DigestText = Annotated[str, PathParameter(description="`b3:<hex>-<size>` or `sha256:<hex>-<size>`")]


class BlobDoor(Controller):
    """`/blobs`"""

    path = "/blobs"
    tags = ("blobs",)
    opt = {"area": "blobs"}  # noqa: RUF012 (Litestar copies it per handler)

    @post("/find-missing", status_code=200, summary="Which of these digests are not stored", opt={"reads": True})
    async def find_missing(
        self,
        services: GivenServices,
        caller: GivenCaller,
        data: Annotated[Digests, Body(description="Digests to look for")],
    ) -> Digests:
        """A digest that is not returned was marked as used now."""
        if len(data.digests) > _ASKED_MAX:
            raise InvalidSpec(f"digests: more than {_ASKED_MAX} in one request", field="digests")
        missing = await services.blobs.find_missing(caller.tenant, [Digest.parse(text) for text in data.digests])
        return Digests(digests=tuple(sorted(str(digest) for digest in missing)))

    @put(
        "/{digest:str}",
        status_code=201,
        summary="Store a blob",
        description="The body is verified against the digest while it is written; storing a blob again is fine.",
        request_max_body_size=None,
    )
    async def write(
        self, request: Request[Any, Any, Any], services: GivenServices, caller: GivenCaller, digest: DigestText
    ) -> Response[None]:
        """Nothing becomes visible unless all of it arrived and matches."""
        named = Digest.parse(digest)
        if named.size_bytes > services.limits.blob_bytes:
            raise TooLarge(f"the blob has {named.size_bytes} bytes; the limit is {services.limits.blob_bytes}")
        content = _bounded(request, named)
        await services.blobs.write(caller.tenant, named, content)
        async for _ in content:
            pass  # a blob that was there already is not read, and its sender must be able to send it to the end
        return Response(None, status_code=201)

    @get("/{digest:str}", summary="Read a blob")
    async def read(
        self,
        services: GivenServices,
        caller: GivenCaller,
        digest: DigestText,
        offset: Annotated[int, QueryParameter(ge=0)] = 0,
        length: Annotated[int | None, QueryParameter(ge=0)] = None,
    ) -> Stream:
        """A part of it with ``offset`` and ``length``."""
        named = Digest.parse(digest)
        if await services.blobs.find_missing(caller.tenant, [named]):
            raise NotFound(f"there is no blob {digest}")
        services.streams.check_room()
        left = max(0, named.size_bytes - offset)
        size = left if length is None else min(length, left)
        return Stream(
            _held(services, services.blobs.read(caller.tenant, named, offset=offset, length=length)),
            media_type="application/octet-stream",
            headers={"content-length": str(size), "x-content-type-options": "nosniff"},
        )


async def _bounded(request: Request[Any, Any, Any], digest: Digest) -> AsyncGenerator[bytes, None]:
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > digest.size_bytes:
            raise InvalidSpec(f"the body is longer than the {digest.size_bytes} bytes that its digest names")
        yield piece


async def _held(services: Services, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    with services.streams.writing():
        async for piece in pieces:
            yield piece
