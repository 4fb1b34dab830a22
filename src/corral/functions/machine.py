"""The life of a function, as a pure function; nothing here waits, reads a clock or knows a database.

``step(function, command, now_s=…)`` gives the function after a command, with what is to be remembered of it. A command
that changes nothing gives the same function, and nothing is remembered; one that is not possible raises. Nobody is
ever elected silently: the split changes only when a command says so, or when the owner chose ``OnBreak.PREVIOUS``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from corral.functions.checks import check_function_name, check_revision_name, check_scale
from corral.functions.model import (
    FunctionKey,
    OnBreak,
    RevisionKey,
    RevisionPhase,
    Scale,
    Share,
)
from corral.kernel.errors import Conflict, InvalidSpec, NotFound, TooLarge

_TEXT_MAX: Final = 300


class RevisionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A deployed revision. ``why`` tells why it is not active; ``deployed_s`` is Unix time."""

    name: str
    fingerprint: str
    phase: RevisionPhase = RevisionPhase.ACTIVE
    scale: Scale = Scale()
    deployed_s: float = 0.0
    why: str = ""


class FunctionState(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback brings back.

    Attributes:
        revisions: in the order of their deployment.
        split: sums to 100, or is empty: no default.
        before: the split that was in force before this one.
        why_none: who left the function without a default, and how.
    """

    revisions: tuple[RevisionEntry, ...] = ()
    split: tuple[Share, ...] = ()
    before: tuple[Share, ...] = ()
    on_break: OnBreak = OnBreak.NOTHING
    why_none: str = ""

    def revision(self, name: str) -> RevisionEntry | None:
        """The revision of this name, if it is deployed."""
        return next((each for each in self.revisions if each.name == name), None)

    def percent(self, name: str) -> int:
        """Its part of the split."""
        return next((each.percent for each in self.split if each.revision == name), 0)

    @property
    def default(self) -> str:
        """The revision that has everything; "" when there is none, or a split between several."""
        return self.split[0].revision if len(self.split) == 1 else ""


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function. ``version`` grows with every change; ``removed`` ones are kept for their history."""

    key: FunctionKey
    version: int
    changed_s: float
    state: FunctionState = FunctionState()
    removed: bool = False

    def revision_key(self, entry: RevisionEntry) -> RevisionKey:
        """Names the content of one of its revisions."""
        return RevisionKey(self.key, entry.name, entry.fingerprint)


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change: who did what when, and the state after it. ``version`` is the function's after it."""

    key: FunctionKey
    version: int
    at_s: float
    actor: str
    action: str
    text: str
    state: FunctionState
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Deploy:
    """A revision is there. ``default`` None: only if the function is new.

    Beyond ``revisions_max`` the oldest ones without a part of the split leave.
    """

    revision: str
    fingerprint: str
    scale: Scale = field(default_factory=Scale)
    default: bool | None = None
    on_break: OnBreak | None = None
    revisions_max: int = 100


@dataclass(frozen=True, slots=True)
class SwitchOn:
    """This one gets everything."""

    revision: str


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """This one is no default any more; the successor, if one is named, gets everything."""

    revision: str
    successor: str = ""


@dataclass(frozen=True, slots=True)
class SetSplit:
    """These get so much, together 100."""

    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Split, scales and phases as they were. Revisions of then come back; those deployed since stay, with no part."""

    to: HistoryEntry


@dataclass(frozen=True, slots=True)
class SetScale:
    """How many instances."""

    revision: str
    scale: Scale


@dataclass(frozen=True, slots=True)
class Stop:
    """No instance any more. Its part of the split stands and is answered with 503."""

    revision: str


@dataclass(frozen=True, slots=True)
class Start:
    """Instances again, after a stop or a break."""

    revision: str


@dataclass(frozen=True, slots=True)
class Break:
    """The breaker found the revision bad. Changes nothing for one that changed meanwhile."""

    revision: str
    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True)
class RemoveRevision:
    """The revision is gone; not while it has a part of the split."""

    revision: str


@dataclass(frozen=True, slots=True)
class Remove:
    """The function is gone, with all its revisions."""


Command = (
    Deploy | SwitchOn | SwitchOff | SetSplit | Rollback | SetScale | Stop | Start | Break | RemoveRevision | Remove
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a command did: ``action`` (kebab-case, past tense) and one sentence; "" when it changed nothing."""

    function: Function
    action: str = ""
    text: str = ""

    def entry(self, actor: str) -> HistoryEntry:
        """For the history."""
        function = self.function
        return HistoryEntry(
            key=function.key,
            version=function.version,
            at_s=function.changed_s,
            actor=actor,
            action=self.action,
            text=self.text[:_TEXT_MAX],
            state=function.state,
            removed=function.removed,
        )


def step(function: Function | None, key: FunctionKey, command: Command, *, now_s: float) -> Change:
    """What ``command`` makes of the function, which may not exist yet.

    Raises: NotFound for a function or revision that is not there; Conflict for what is not possible now; InvalidSpec.
    """
    if isinstance(command, Deploy):
        return _deploy(function, key, command, now_s)
    if function is None or (function.removed and not isinstance(command, Rollback)):
        raise NotFound(f'there is no function "{key.name[:70]}"', function=key.name[:70])
    state, action, text = _command(function.state, command, now_s)
    removed = isinstance(command, Remove)
    if state == function.state and removed is function.removed:
        return Change(function)
    return Change(_changed(function, state, now_s, removed=removed), action, text)


def expect_version(function: Function | None, wanted: int | None) -> None:
    """Raises Conflict when the caller saw another version than the one there is; None accepts any."""
    if wanted is not None and (found := function.version if function is not None else 0) != wanted:
        raise Conflict(
            f"the function is at version {found} now, not {wanted}", cure="look again, then repeat it", version=found
        )


def earlier_split(history: Sequence[HistoryEntry], split: tuple[Share, ...]) -> HistoryEntry | None:
    """The newest entry (``history`` is newest first) in which another split was in force, and one at all."""
    return next((each for each in history if each.state.split and each.state.split != split), None)


def _command(state: FunctionState, command: Command, now_s: float) -> tuple[FunctionState, str, str]:  # noqa: C901, PLR0911 (a table)
    match command:
        case SwitchOn():
            return _switch_on(state, command.revision)
        case SwitchOff():
            return _switch_off(state, command)
        case SetSplit():
            return _set_split(state, command.shares)
        case Rollback():
            return _rollback(state, command.to)
        case SetScale():
            return _set_scale(state, command)
        case Stop():
            return _stop(state, command.revision)
        case Start():
            return _start(state, command.revision)
        case Break():
            return _break(state, command)
        case RemoveRevision():
            return _remove_revision(state, command.revision)
        case Remove():
            return FunctionState(on_break=state.on_break), "function-removed", "removed with all its revisions"
        case Deploy():
            raise AssertionError("handled before")
        case _:
            assert_never(command)


def _deploy(function: Function | None, key: FunctionKey, command: Deploy, now_s: float) -> Change:
    check_function_name(key.name)
    name = check_revision_name(command.revision)
    check_scale(command.scale)
    new = function is None or function.removed
    before = function or Function(key=key, version=0, changed_s=now_s)
    state = before.state if command.on_break is None else replace(before.state, on_break=command.on_break)
    there = state.revision(name)
    if there is not None and there.fingerprint != command.fingerprint:
        raise Conflict(
            f'revision "{name}" of function "{key.name}" is deployed with other content',
            cure="choose another revision name; a revision never changes",
            revision=name,
        )
    if there is None:
        fresh = RevisionEntry(name=name, fingerprint=command.fingerprint, scale=command.scale, deployed_s=now_s)
        state = _pruned(replace(state, revisions=(*state.revisions, fresh)), command.revisions_max, keep=name)
    elif there.phase is not RevisionPhase.ACTIVE:
        state, _, _ = _start(state, name)
    if command.default or (command.default is None and new):
        state, _, _ = _switch_on(state, name)
    if state == before.state and not before.removed and function is not None:
        return Change(before)
    default = ", and made the default" if state.default == name != before.state.default else ""
    return Change(_changed(before, state, now_s), "revision-deployed", f"{name} deployed{default}")


def _pruned(state: FunctionState, revisions_max: int, *, keep: str) -> FunctionState:
    """Let the oldest revisions go that nothing needs, down to the limit."""
    surplus = len(state.revisions) - revisions_max
    if surplus <= 0:
        return state
    needed = {each.revision for each in (*state.split, *state.before)} | {keep}
    idle = [each.name for each in state.revisions if each.name not in needed]
    if len(idle) < surplus:
        raise TooLarge(f"the function has {revisions_max} revisions already, the limit functions.revisions_max")
    gone = set(idle[:surplus])
    return replace(state, revisions=tuple(each for each in state.revisions if each.name not in gone))


def _switch_on(state: FunctionState, name: str) -> tuple[FunctionState, str, str]:
    _active(state, name)
    return _with_split(state, (Share(revision=name, percent=100),)), "switched-on", f"{name} is the default"


def _switch_off(state: FunctionState, command: SwitchOff) -> tuple[FunctionState, str, str]:
    name, successor = command.revision, command.successor
    _deployed(state, name)
    if successor:
        if successor == name:
            raise Conflict(f'revision "{name}" cannot be its own successor', cure="name another one, or none")
        _active(state, successor)
    percent = state.percent(name)
    if not percent:
        if successor:
            raise Conflict(f'revision "{name}" is not the default', cure=f"switch {successor} on instead")
        return state, "", ""
    if successor:
        after = _with_split(state, (Share(revision=successor, percent=100),))
        return after, "switched-off", f"{name} is off, {successor} is the default"
    if percent < 100:
        raise Conflict(
            f'revision "{name}" has {percent} % of a split',
            cure="name its successor, or set another split",
        )
    after = replace(_with_split(state, ()), why_none=f"{name} was switched off without a successor")
    return after, "switched-off", f"{name} is off; no revision is the default"


def _set_split(state: FunctionState, shares: tuple[Share, ...]) -> tuple[FunctionState, str, str]:
    names = [each.revision for each in shares]
    mistakes = [f"split: {each.revision} with {each.percent} %" for each in shares if not 1 <= each.percent <= 100]
    if mistakes:
        raise InvalidSpec(f"{'; '.join(mistakes)}: a part is between 1 and 100 percent", field="split")
    if len(set(names)) < len(names):
        raise InvalidSpec("split: a revision is named twice", field="split")
    total = sum(each.percent for each in shares)
    if total != 100:
        raise InvalidSpec(f"split: the parts sum to {total}, not to 100", field="split")
    for name in names:
        _active(state, name)
    told = ", ".join(f"{each.revision} {each.percent} %" for each in shares)
    return _with_split(state, tuple(shares)), "split", told


def _rollback(state: FunctionState, to: HistoryEntry) -> tuple[FunctionState, str, str]:
    if to.removed or not to.state.revisions:
        raise Conflict(
            f"after version {to.version} the function had no revisions", cure="choose another one from the history"
        )
    then = {each.name for each in to.state.revisions}
    later = tuple(each for each in state.revisions if each.name not in then)
    after = replace(to.state, revisions=(*to.state.revisions, *later))
    after = replace(after, before=state.split if state.split != after.split else state.before)
    return after, "rolled-back", f"to version {to.version}"


def _set_scale(state: FunctionState, command: SetScale) -> tuple[FunctionState, str, str]:
    check_scale(command.scale)
    entry = _deployed(state, command.revision)
    scale = command.scale
    told = f"{entry.name}: {scale.min} to {scale.max} instances, {scale.target:g} requests each"
    return _with_revision(state, replace(entry, scale=scale)), "scaled", told


def _stop(state: FunctionState, name: str) -> tuple[FunctionState, str, str]:
    entry = _deployed(state, name)
    if entry.phase is RevisionPhase.STOPPED:
        return state, "", ""
    after = _with_revision(state, replace(entry, phase=RevisionPhase.STOPPED, why="an operator stopped it"))
    percent = state.percent(name)
    left = f"; its {percent} % of the requests get 503" if percent else ""
    return after, "stopped", f"{name} stopped{left}"


def _start(state: FunctionState, name: str) -> tuple[FunctionState, str, str]:
    entry = _deployed(state, name)
    after = _with_revision(state, replace(entry, phase=RevisionPhase.ACTIVE, why=""))
    return after, "started", f"{name} started"


def _break(state: FunctionState, command: Break) -> tuple[FunctionState, str, str]:
    entry = state.revision(command.revision)
    if entry is None or entry.fingerprint != command.fingerprint or entry.phase is not RevisionPhase.ACTIVE:
        return state, "", ""
    why = command.why[:_TEXT_MAX]
    after = _with_revision(state, replace(entry, phase=RevisionPhase.BROKEN, why=why))
    text = f"{entry.name} is broken: {why}"
    if not state.percent(entry.name) or state.on_break is not OnBreak.PREVIOUS:
        return after, "broke", text
    usable = {each.name for each in after.revisions if each.phase is RevisionPhase.ACTIVE}
    if not state.before or not all(each.revision in usable for each in state.before):
        return after, "broke", f"{text}; no earlier split can take over"
    told = ", ".join(f"{each.revision} {each.percent} %" for each in state.before)
    return replace(_with_split(after, state.before), before=()), "broke", f"{text}; back to {told}"


def _remove_revision(state: FunctionState, name: str) -> tuple[FunctionState, str, str]:
    _deployed(state, name)
    if percent := state.percent(name):
        raise Conflict(
            f'revision "{name}" gets {percent} % of the requests',
            cure="switch another one on first, or switch this one off",
        )
    kept = tuple(each for each in state.revisions if each.name != name)
    before = () if any(each.revision == name for each in state.before) else state.before
    return replace(state, revisions=kept, before=before), "revision-removed", f"{name} removed"


def _with_split(state: FunctionState, split: tuple[Share, ...]) -> FunctionState:
    if split == state.split:
        return state
    return replace(state, split=split, before=state.split or state.before, why_none="")


def _with_revision(state: FunctionState, entry: RevisionEntry) -> FunctionState:
    return replace(state, revisions=tuple(entry if each.name == entry.name else each for each in state.revisions))


def _deployed(state: FunctionState, name: str) -> RevisionEntry:
    found = state.revision(name)
    if found is None:
        raise NotFound(f'there is no revision "{name[:70]}" of this function', revision=name[:70])
    return found


def _active(state: FunctionState, name: str) -> RevisionEntry:
    found = _deployed(state, name)
    if found.phase is not RevisionPhase.ACTIVE:
        raise Conflict(
            f'revision "{name}" is {found.phase.value}: {found.why}', cure="start it, then switch or split again"
        )
    return found


def _changed(function: Function, state: FunctionState, now_s: float, *, removed: bool = False) -> Function:
    return replace(function, version=function.version + 1, changed_s=now_s, state=state, removed=removed)
