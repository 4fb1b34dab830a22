"""What the inputs of a claimed task that name earlier artifacts stand for, looked up when the run is handed out."""

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.tasks.adapters import sql
from corral.tasks.model import Artifact
from corral.tasks.payload import artifact_references
from corral.tasks.ports import Claim


async def with_artifacts(connection: AsyncConnection, claim: Claim) -> Claim:
    """The claim with every artifact that its payload names and its tenant has; the worker tells what is absent."""
    references = artifact_references(claim.definition.payload)
    if not references:
        return claim
    tasks = await sql.load(connection, {reference.task for reference in references}, locked=False)
    found: dict[str, Artifact] = {}
    for reference in references:
        record = tasks.get(reference.task)
        if record is None or record.tenant != claim.tenant or not record.life.runs:
            continue
        run = len(record.life.runs) - 1 if reference.run is None else reference.run
        for artifact in await sql.artifacts_of(connection, reference.task, run):
            if artifact.name == reference.name:
                found[reference.key] = artifact
    return replace(claim, artifacts=found)
