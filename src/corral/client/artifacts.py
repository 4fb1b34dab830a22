"""Artifacts over REST, and fetching them into a local directory without trusting their names."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from corral.blobs.ports import BlobStore
from corral.client.connection import Connection, segment
from corral.client.model import ArtifactList, RunArtifact
from corral.client.trees import fetch_tree
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound
from corral.tasks.model import ArtifactKind


class Artifacts:
    """The named outputs of runs."""

    def __init__(self, connection: Connection, blobs: BlobStore) -> None:
        self._connection = connection
        self._blobs = blobs

    async def list(self, task_id: str, *, run: int | None = None) -> tuple[RunArtifact, ...]:
        """Artifacts of one run, or of the newest when ``run`` is None."""
        answer = await self._connection.call(
            "GET", f"/tasks/{segment(task_id)}/artifacts", ArtifactList, query={"run": run}
        )
        return answer.artifacts

    async def read(self, task_id: str, run: int, name: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a file artifact; a directory comes as a tar stream."""
        path = f"/tasks/{segment(task_id)}/runs/{run}/artifacts/{quote(name)}"
        async with self._connection.stream("GET", path) as body:
            async for piece in body.pieces():
                yield piece

    async def fetch(self, task_id: str, found: RunArtifact, into: Path) -> Path:
        """Write an artifact below ``into`` under its own name; the path that was written.

        Complete or absent: a file is renamed into place after its last byte.
        Raises: InvalidSpec for a name that would leave ``into``; NotFound for an artifact that was not collected.
        """
        artifact = found.artifact
        if artifact.kind is ArtifactKind.ERROR:
            raise NotFound(f"artifact {artifact.name}: {artifact.message or 'was not collected'}")
        target = safe_target(into, artifact.name)
        if artifact.kind is ArtifactKind.DIRECTORY:
            await fetch_tree(self._blobs, Digest.parse(artifact.digest), target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as file:
                async for piece in self.read(task_id, found.run, artifact.name):
                    file.write(piece)
            if artifact.executable:
                mode = partial.stat().st_mode
                partial.chmod(mode | (mode & 0o444) >> 2)  # for whoever may read it
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target


def safe_target(into: Path, name: str) -> Path:
    """The path of artifact ``name`` below ``into``. Raises InvalidSpec when it would leave ``into``."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\0" in name:
        raise InvalidSpec(f'artifact "{name}": its name leads out of {into}; it was not fetched', field="name")
    target = into.joinpath(*pure.parts)
    if not target.parent.resolve().is_relative_to(into.resolve()):
        raise InvalidSpec(f'artifact "{name}": a link in {into} leads elsewhere; it was not fetched', field="name")
    return target
