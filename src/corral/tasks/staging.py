"""Puts a run's inputs into its sandbox before the command starts."""

from collections.abc import Sequence

from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import Input
from corral.tasks.model import Artifact, ArtifactKind
from corral.tasks.paths import below, printable
from corral.tasks.plugin import RunContext
from corral.tasks.transfer import put_file, put_tree


async def stage_inputs(run: RunContext, inputs: Sequence[Input], sandbox: Sandbox) -> None:
    """Put every input where it belongs, in the order of the payload.

    Raises:
        InvalidSpec: an input that does not exist; says which.
        TooLarge: the sandbox's working directory is full.
        StoreUnavailable, SandboxLost: as they say.
    Cancellation: some may be in place.
    """
    for index, each in enumerate(inputs):
        digest, is_tree, executable = _source(run, each, index)
        path = below(run.work, each.path)
        try:
            if is_tree:
                await put_tree(sandbox, run.blobs, run.tenant, digest, path)
            elif each.path == ".":
                raise InvalidSpec(f'payload.inputs[{index}].path: a file needs a name; "." is the working directory')
            else:
                await put_file(sandbox, run.blobs, run.tenant, digest, path, executable=executable)
        except NotFound as error:
            raise InvalidSpec(
                f'payload.inputs[{index}]: "{printable(each.path)}" is not in the store: {error.message}',
                cure="upload it again; blobs that nobody uses for long are forgotten",
            ) from error
        run.inputs.append(str(digest))


def _source(run: RunContext, each: Input, index: int) -> tuple[Digest, bool, bool]:
    """What the input is, whether it is a tree, and whether its file is executable."""
    if each.digest:
        return Digest.parse(each.digest), False, each.executable
    if each.tree:
        return Digest.parse(each.tree), True, False
    assert each.artifact is not None  # an input has exactly one source
    artifact = run.claim.artifacts.get(each.artifact.key)
    at = f"payload.inputs[{index}].artifact"
    named = f'"{printable(each.artifact.name)}" of task {each.artifact.task}'
    if artifact is None:
        raise InvalidSpec(f"{at}: there is no artifact {named}")
    digest, is_tree = _of_artifact(artifact, at, named)
    return digest, is_tree, each.executable or artifact.executable


def _of_artifact(artifact: Artifact, at: str, named: str) -> tuple[Digest, bool]:
    if artifact.kind is ArtifactKind.ERROR:
        raise InvalidSpec(f"{at}: the artifact {named} was never made: {artifact.message}")
    return Digest.parse(artifact.digest), artifact.kind is ArtifactKind.DIRECTORY
