"""What REST answers about actions: the one definition that the door writes and the client reads.

Digests are text (``kernel.digest``), times Unix seconds, 0 where something has not happened.
"""

import msgspec

from corral.actions.model import ActionTimes
from corral.actions.model import Command as ActionCommand

__all__ = [
    "ActionCommand",
    "ActionProblem",
    "ActionTimes",
    "ActionView",
    "ExecutionView",
    "OutputView",
    "ResultView",
]


class OutputView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One output: a file, a directory (``digest`` is of its encoded tree), or a symlink."""

    path: str
    kind: str
    digest: str = ""
    executable: bool = False
    target: str = ""


class ResultView(msgspec.Struct, frozen=True, kw_only=True):
    """What an action did. ``stdout`` and ``stderr`` are digests, "" when nothing was written."""

    exit_code: int = 0
    outputs: tuple[OutputView, ...] = ()
    stdout: str = ""
    stderr: str = ""
    worker: str = ""
    times: ActionTimes = ActionTimes()


class ActionProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why an action could not be executed. ``missing`` are the digests of blobs that must be uploaded first."""

    code: str
    message: str
    missing: tuple[str, ...] = ()


class ExecutionView(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of an action.

    Attributes:
        execution: its id; of a task of the queue, or ``cached:…``.
        stage: cache-check, queued, executing or completed.
        ended: how the command ended, once it has: exited, signaled, timed-out, limit, not-started.
        message: one sentence for people.
    """

    execution: str
    action: str
    stage: str
    worker: str = ""
    cached: bool = False
    ended: str = ""
    message: str = ""
    result: ResultView | None = None
    problem: ActionProblem | None = None

    @property
    def done(self) -> bool:
        """True when nothing more will happen."""
        return self.stage == "completed"


class ActionView(msgspec.Struct, frozen=True, kw_only=True):
    """What a digest is: the action, its command, and its result when one is cached.

    ``stored`` is False for an action of which only the result is known.
    """

    action: str
    stored: bool = True
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str = ""
    outputs: tuple[str, ...] = ()
    platform: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None
    do_not_cache: bool = False
    command: str = ""
    input_root: str = ""
    cached: ResultView | None = None
    stored_s: float = 0.0
    execution: str = ""
