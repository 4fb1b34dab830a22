"""Plugin ``success``: the command's exit status decides. 0 is success unless the payload says otherwise.

A limit that ended the command (time, memory, output, ...) is never a success, whatever the exit status.
"""

from typing import Annotated, Any

import msgspec

from corral.sandboxes.model import End, ExecResult
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import refuse
from corral.tasks.model import Reason
from corral.tasks.plugin import Plugin, RunContext, TaskPlugin
from corral.tasks.stages import RunEnded


class SuccessFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload fields."""

    success_statuses: Annotated[
        tuple[int, ...], msgspec.Meta(description="Exit statuses that mean success; 0 when left out")
    ] = (0,)
    retry_statuses: Annotated[
        tuple[int, ...], msgspec.Meta(description="Exit statuses after which the task is tried again (intermittent)")
    ] = ()

    def __post_init__(self) -> None:
        mistakes = [
            f"{field}[{index}]: {status} is no exit status; one is between 0 and 255"
            for field in ("success_statuses", "retry_statuses")
            for index, status in enumerate(getattr(self, field))
            if not 0 <= status <= 255
        ]
        if not self.success_statuses:
            mistakes.append("success_statuses: is empty, so the task could never succeed; leave it out for 0")
        both = sorted(set(self.success_statuses) & set(self.retry_statuses))
        mistakes += [f"retry_statuses: {status} is also in success_statuses; it cannot be both" for status in both]
        refuse(mistakes)


class SuccessPlugin(Plugin):
    """Judges every command."""

    name = "success"
    fields = SuccessFields

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        return None if fields is None else _Judge(run, fields)


class _Judge(TaskPlugin):
    def __init__(self, run: RunContext, fields: SuccessFields) -> None:
        self._run = run
        self._fields = fields

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        if result.end is End.EXITED and result.exit_status in self._fields.success_statuses:
            return True
        if result.end is End.EXITED and result.exit_status in self._fields.retry_statuses:
            message = f"exit status {result.exit_status} asks for another try (retry_statuses)"
            raise RunEnded(Reason.INTERMITTENT_TASK, message)
        self._run.say(sentence(result))
        return False


def sentence(result: ExecResult) -> str:
    """How the command ended, for its user."""
    if result.end is End.EXITED:
        return f"the command ended with exit status {result.exit_status}"
    if result.end is End.SIGNALED and result.signal is not None:
        return result.message or f"the command was killed by signal {result.signal}"
    return result.message or f"the command ended: {result.end.value}"
