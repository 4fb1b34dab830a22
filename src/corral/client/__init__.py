"""The public SDK: everything that a user of Corral can do, and the only thing that the command line uses.

::

    async with Corral() as corral:
        task = await corral.tasks.submit(TaskDefinition(payload={"command": ["make", "-j4"]}))
        async for piece in corral.logs.read(task.id, 0, follow=True):
            ...
        done = await corral.tasks.wait(task.id)
"""

from typing import TYPE_CHECKING, Any

from corral.client.function_model import (
    ChangeAnswer,
    DeployAnswer,
    DeployRequest,
    FunctionView,
    InstanceView,
    RevisionView,
)
from corral.client.model import RunArtifact, RunView, StoryEvent, TaskView, Why, WorkerView
from corral.functions.model import Kind, Limits, LogLine, OnBreak, Preopen, Scale, Share
from corral.functions.traces import Trace
from corral.tasks.model import Artifact, ArtifactKind, Phase, Priority, Reason, Requires, TaskDefinition

if TYPE_CHECKING:
    from corral.client.corral import Corral
    from corral.client.functions import CallAnswer
    from corral.client.upload import Progress

__all__ = [
    "Artifact",
    "ArtifactKind",
    "CallAnswer",
    "ChangeAnswer",
    "Corral",
    "DeployAnswer",
    "DeployRequest",
    "FunctionView",
    "InstanceView",
    "Kind",
    "Limits",
    "LogLine",
    "OnBreak",
    "Phase",
    "Preopen",
    "Priority",
    "Progress",
    "Reason",
    "Requires",
    "RevisionView",
    "RunArtifact",
    "RunView",
    "Scale",
    "Share",
    "StoryEvent",
    "TaskDefinition",
    "TaskView",
    "Trace",
    "Why",
    "WorkerView",
]


def __getattr__(name: str) -> Any:
    """Load what needs an HTTP library when it is used: the scheduler imports this package for its nouns only."""
    if name == "Corral":
        from corral.client.corral import Corral  # noqa: PLC0415

        return Corral
    if name == "CallAnswer":
        from corral.client.functions import CallAnswer  # noqa: PLC0415

        return CallAnswer
    if name == "Progress":
        from corral.client.upload import Progress  # noqa: PLC0415

        return Progress
    raise AttributeError(name)
