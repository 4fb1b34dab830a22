"""An action on its way through the durable queue: the payload that the scheduler writes and a worker reads, and the
report that comes back."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from corral.actions.model import ActionReport
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

KEY: Final = "action"
"""The one key of such a payload."""


class ActionPayload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to execute.

    Attributes:
        digest: of the action.
        platform: the properties that hold; None: the action's own.
        timeout_s: for an action that names none; None: the worker's default.
        queued_s: when it was asked for.
        do_not_cache: nobody may share this execution.
    """

    digest: str
    platform: dict[str, str] | None = None
    timeout_s: float | None = None
    queued_s: float = 0.0
    do_not_cache: bool = False


def write_payload(payload: ActionPayload) -> dict[str, Any]:
    """As a task's definition holds it."""
    return {KEY: msgspec.to_builtins(payload)}


def read_payload(payload: Mapping[str, Any]) -> ActionPayload:
    """Raises InvalidSpec when it is none."""
    if set(payload) != {KEY}:
        others = ", ".join(sorted(str(key)[:40] for key in payload if key != KEY))
        raise InvalidSpec(f"payload: an action takes no other keys beside it; here are {others or 'none'}")
    try:
        read = msgspec.convert(payload[KEY], ActionPayload)
    except msgspec.ValidationError as error:
        raise InvalidSpec(f"payload.{KEY}: {error}") from error
    Digest.parse(read.digest)
    if read.timeout_s is not None and not 0 < read.timeout_s < float("inf"):
        raise InvalidSpec(f"payload.{KEY}.timeout_s: {read.timeout_s} is not above 0")
    return read


def payload_mistakes(payload: Mapping[str, Any]) -> list[str]:
    """All mistakes of such a payload, as sentences."""
    try:
        read_payload(payload)
    except InvalidSpec as error:
        return list(error.mistakes)
    return []


def write_report(report: ActionReport) -> str:
    """As a run's report holds it."""
    return msgspec.json.encode(report).decode()


def read_report(text: str | bytes) -> ActionReport:
    """Raises InvalidSpec when it is none, or a newer worker's."""
    try:
        return msgspec.json.decode(text, type=ActionReport)
    except msgspec.MsgspecError as error:
        raise InvalidSpec(f"the worker's report of the action cannot be read: {error}") from error
