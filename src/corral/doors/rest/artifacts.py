"""Artifacts: list them, download a file as it is, a directory as a tar stream or as a listing."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final
from urllib.parse import quote

from litestar import Controller, get
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from corral.client.model import ArtifactList
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Caller, Services
from corral.doors.rest.tar import tar_of_tree
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound
from corral.tasks.model import Artifact, ArtifactKind

_SAFE_TYPES: Final = frozenset({"text/plain", "application/json", "application/octet-stream"})


class ArtifactDoor(Controller):
    """`/tasks/{id}/artifacts` and below the runs"""

    path = "/tasks/{task_id:str}"
    tags = ("artifacts",)
    opt = {"area": "tasks"}  # noqa: RUF012 (Litestar copies it per handler)

    @get("/artifacts", summary="Artifacts of one run, or of the newest")
    async def all(
        self, services: GivenServices, caller: GivenCaller, task_id: FromPath[str], run: FromQuery[int | None] = None
    ) -> ArtifactList:
        """Names, kinds, digests and sizes."""
        return await services.tasks.artifacts(caller.tenant, task_id, run)

    @get(
        "/runs/{run:int}/artifacts/{name:path}",
        summary="Download an artifact",
        description="A file comes as its bytes; a directory as a tar stream.",
    )
    async def download(
        self,
        services: GivenServices,
        caller: GivenCaller,
        task_id: FromPath[str],
        run: FromPath[int],
        name: FromPath[str],
    ) -> Stream:
        """Never shown by a browser as a page of ours: artifacts are other people's bytes."""
        artifact = await _artifact(services, caller, task_id, run, name.lstrip("/"))
        services.streams.check_room()
        digest = Digest.parse(artifact.digest)
        if artifact.kind is ArtifactKind.DIRECTORY:
            body: AsyncIterator[bytes] = tar_of_tree(services.blobs, caller.tenant, digest)
            return Stream(
                _held(services, body),
                media_type="application/x-tar",
                headers=_headers(f"{artifact.name.rpartition('/')[2]}.tar"),
            )
        kind = artifact.content_type.partition(";")[0].strip()
        return Stream(
            _held(services, services.blobs.read(caller.tenant, digest)),
            media_type=artifact.content_type if kind in _SAFE_TYPES else "application/octet-stream",
            headers={
                **_headers(artifact.name.rpartition("/")[2]),
                "content-length": str(digest.size_bytes),
                "etag": f'"{digest}"',
            },
        )


async def _artifact(services: Services, caller: Caller, task_id: str, run: int, name: str) -> Artifact:
    listed: Any = await services.tasks.artifacts(caller.tenant, task_id, run)
    for each in listed.artifacts:
        if each.artifact.name == name:
            artifact: Artifact = each.artifact
            if artifact.kind is ArtifactKind.ERROR:
                raise NotFound(f'artifact "{name}" was not collected: {artifact.message}')
            return artifact
    raise NotFound(f'run {run} of {task_id} has no artifact "{name}"')


def _headers(file_name: str) -> dict[str, str]:
    return {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file_name)}",
        "x-content-type-options": "nosniff",
    }


async def _held(services: Services, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    with services.streams.writing():
        async for piece in pieces:
            yield piece
