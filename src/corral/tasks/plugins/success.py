"""Plugin ``success``: the command's exit status decides. 0 is success unless the payload says otherwise.

A limit that ended the command (time, memory, output, ...) is never a success, whatever the exit status.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from corral.kernel.units import format_size
from corral.sandboxes.link.execution import signal_name
from corral.sandboxes.model import End, ExecResult, Size
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
    takes_out = False

    def __init__(self, run: RunContext, fields: SuccessFields) -> None:
        self._run = run
        self._fields = fields

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        if result.end is End.EXITED and result.exit_status in self._fields.success_statuses:
            return True
        if result.end is End.EXITED and result.exit_status in self._fields.retry_statuses:
            message = f"exit status {result.exit_status} asks for another try (retry_statuses)"
            raise RunEnded(Reason.INTERMITTENT_TASK, message)
        text = sentence(result, sandbox.spec.size)
        self._run.say(text)
        if result.end in _LIMITS:
            self._run.log.error(text)
        return False


def sentence(result: ExecResult, size: Size) -> str:
    """How the command ended, for its user; a limit of ``size`` is named with its value and how to ask for more."""
    if result.end is End.EXITED:
        return f"the command ended with exit status {result.exit_status}"
    if result.end in _LIMITS:
        return _LIMITS[result.end](result, size)
    if result.end is End.SIGNALED and result.signal is not None:
        return f"the command was killed by {signal_name(result.signal)}"
    return result.message or f"the command ended: {result.end.value}"


_LIMITS: Final[Mapping[End, Callable[[ExecResult, Size], str]]] = {
    End.OUT_OF_MEMORY: lambda _, size: (
        f"the sandbox used all of its {format_size(size.memory_bytes)} of memory (files in /work and /tmp count); "
        "ask for more with resources.memory (--memory)"
    ),
    End.PROCESS_LIMIT: lambda _, size: (
        f"the sandbox had all of its {size.processes} processes; ask for more with resources.processes (--processes)"
    ),
    End.DISK_FULL: lambda result, size: (
        f"{result.message}: it holds {format_size(size.disk_bytes)}; ask for more with resources.disk (--disk), "
        "and for as much more of resources.memory (--memory)"
    ),
    End.FILE_LIMIT: lambda result, size: f"{result.message}, {size.files}; ask for more with resources.files (--files)",
}
