"""Plugin ``maxruntime``: how long a command may run. Only the command counts, not what goes before or after."""

from typing import Annotated, Any

import msgspec

from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration, parse_duration_s
from corral.sandboxes.model import End, ExecResult
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import refuse
from corral.tasks.plugin import ExecDraft, Plugin, RunContext, TaskPlugin


class MaxRunTimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``default_s`` for tasks that say nothing; a task that asks for more than ``ceiling_s`` is malformed."""

    default_s: float = 3600.0
    ceiling_s: float = 86_400.0

    def __post_init__(self) -> None:
        if not 0 < self.default_s <= self.ceiling_s:
            raise ValueError("default_s must be above 0 and at most ceiling_s")


class MaxRunTimeFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload fields."""

    max_run_time: Annotated[
        str | float | None, msgspec.Meta(description='How long the command may run, such as "10m"; it is killed then')
    ] = None

    def __post_init__(self) -> None:
        if self.max_run_time is None:
            return
        try:
            seconds = parse_duration_s(self.max_run_time, field="max_run_time")
        except InvalidSpec as error:
            refuse([error.message])
        else:
            if seconds <= 0:
                refuse(["max_run_time: is 0, so the command could never run; leave it out for the worker's default"])


class MaxRunTimePlugin(Plugin):
    """Bounds every command."""

    name = "maxruntime"
    fields = MaxRunTimeFields

    def __init__(self, config: MaxRunTimeConfig | None = None) -> None:
        self._config = config or MaxRunTimeConfig()

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        if fields is None:
            return None
        assert isinstance(fields, MaxRunTimeFields)
        limit_s = self._config.default_s if fields.max_run_time is None else parse_duration_s(fields.max_run_time)
        if limit_s > self._config.ceiling_s:
            most = format_duration(self._config.ceiling_s)
            refuse([f"max_run_time: {format_duration(limit_s)} is more than this worker allows ({most})"])
        return _Bound(run, limit_s)


class _Bound(TaskPlugin):
    takes_out = False

    def __init__(self, run: RunContext, limit_s: float) -> None:
        self._run = run
        self._limit_s = limit_s

    def build(self, draft: ExecDraft) -> None:
        draft.timeout_s = self._limit_s

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        if result.end is not End.TIMED_OUT:
            return True
        limit = format_duration(self._limit_s)
        sentence = f"the command was killed after its max_run_time of {limit}; ask for more with --timeout"
        self._run.say(sentence)
        self._run.log.error(sentence)
        return False
