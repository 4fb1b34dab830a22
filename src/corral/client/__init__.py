"""The public SDK: everything that a user of Corral can do, and the only thing that the command line uses.

::

    async with Corral() as corral:
        task = await corral.tasks.submit(TaskDefinition(payload={"command": ["make", "-j4"]}))
        async for piece in corral.logs.read(task.id, 0, follow=True):
            ...
        done = await corral.tasks.wait(task.id)
"""

from corral.client.corral import Corral
from corral.client.model import RunArtifact, RunView, StoryEvent, TaskView, Why, WorkerView
from corral.client.upload import Progress
from corral.tasks.model import Artifact, ArtifactKind, Phase, Priority, Reason, Requires, TaskDefinition

__all__ = [
    "Artifact",
    "ArtifactKind",
    "Corral",
    "Phase",
    "Priority",
    "Progress",
    "Reason",
    "Requires",
    "RunArtifact",
    "RunView",
    "StoryEvent",
    "TaskDefinition",
    "TaskView",
    "Why",
    "WorkerView",
]
