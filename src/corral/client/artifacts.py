"""Artifacts over REST, and fetching them into a local directory without trusting their names."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote

from corral.blobs.ports import BlobStore
from corral.client.connection import Connection, segment
from corral.client.local_files import safe_target, writing
from corral.client.model import ArtifactList, RunArtifact
from corral.client.trees import fetch_tree
from corral.kernel.digest import Digest, Digester
from corral.kernel.errors import BlobCorrupt, NotFound
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
        Raises: InvalidSpec for a name that would leave ``into``, or when this machine's disk refuses; NotFound for an
        artifact that was not collected; BlobCorrupt when other bytes came than were kept.
        """
        artifact = found.artifact
        if artifact.kind is ArtifactKind.ERROR:
            raise NotFound(f"artifact {artifact.name}: {artifact.message or 'was not collected'}")
        target = safe_target(into, artifact.name)
        with writing(target):
            if artifact.kind is ArtifactKind.DIRECTORY:
                await fetch_tree(self._blobs, Digest.parse(artifact.digest), target)
            else:
                await self._fetch_file(task_id, found, target)
        return target

    async def _fetch_file(self, task_id: str, found: RunArtifact, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            kept = Digest.parse(found.artifact.digest)
            digester = Digester(kept.function)
            with partial.open("wb") as file:
                async for piece in self.read(task_id, found.run, found.artifact.name):
                    digester.update(piece)
                    file.write(piece)
            if digester.digest() != kept:
                raise BlobCorrupt(f"artifact {found.artifact.name}: what came is not what was kept, {kept}")
            if found.artifact.executable:
                mode = partial.stat().st_mode
                partial.chmod(mode | (mode & 0o444) >> 2)  # for whoever may read it
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
