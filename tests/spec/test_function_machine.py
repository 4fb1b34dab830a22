"""The life of a function: what every command does, and the defects that older registries had."""

import pytest

from corral.functions import machine
from corral.functions.checks import check_function_name, check_revision_name, check_scale, check_spec
from corral.functions.machine import Break, Change, Command, Deploy, Function, FunctionState, HistoryEntry
from corral.functions.model import (
    FunctionKey,
    Kind,
    Limits,
    OnBreak,
    Preopen,
    RevisionPhase,
    RevisionSpec,
    Scale,
    Share,
    fingerprint,
)
from corral.kernel.errors import Conflict, InvalidSpec, NotFound, TooLarge

KEY = FunctionKey("default", "hello")
NOW_S = 100.0
MODULE = "b3:" + "ab" * 32 + "-8"
V1 = Share(revision="v1", percent=100)
V2 = Share(revision="v2", percent=100)


def after(*commands: Command, function: Function | None = None) -> Function:
    for command in commands:
        function = machine.step(function, KEY, command, now_s=NOW_S).function
    assert function is not None
    return function


def deployed(*names: str) -> Function:
    """Revisions in this order; the first is the default."""
    return after(*(Deploy(name, f"print-{name}") for name in names))


def step(function: Function, command: Command) -> Change:
    return machine.step(function, KEY, command, now_s=NOW_S)


def entry_of(function: Function) -> HistoryEntry:
    return Change(function, "x", "x").entry("ann")


def shares(**parts: int) -> machine.SetSplit:
    return machine.SetSplit(tuple(Share(revision=name, percent=percent) for name, percent in parts.items()))


def test_the_first_revision_of_a_function_is_its_default_and_later_ones_are_not() -> None:
    function = deployed("v1", "v2")

    assert function.state.split == (V1,)
    assert [each.name for each in function.state.revisions] == ["v1", "v2"]


def test_a_first_revision_may_be_deployed_without_becoming_the_default() -> None:
    assert after(Deploy("v1", "x", default=False)).state.split == ()


def test_the_same_deployment_again_changes_nothing() -> None:
    function = deployed("v1")

    change = step(function, Deploy("v1", "print-v1"))

    assert (change.function, change.action) == (function, "")


def test_other_content_under_a_known_name_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="other content"):
        step(deployed("v1"), Deploy("v1", "another"))


def test_switching_on_makes_exactly_this_one_the_default() -> None:
    function = after(machine.SwitchOn("v2"), function=deployed("v1", "v2", "v3"))

    assert function.state.split == (V2,)


def test_switching_off_never_makes_all_others_the_default() -> None:
    function = after(machine.SwitchOff("v1"), function=deployed("v1", "v2", "v3"))

    assert function.state.split == ()
    assert "v1" in function.state.why_none


def test_switching_off_with_a_successor_hands_over_in_one_step() -> None:
    function = deployed("v1", "v2")

    change = step(function, machine.SwitchOff("v1", successor="v2"))

    assert change.function.state.split == (V2,)
    assert change.function.version == function.version + 1


def test_switching_off_what_is_not_the_default_changes_nothing() -> None:
    function = deployed("v1", "v2")

    assert step(function, machine.SwitchOff("v2")).action == ""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (machine.SwitchOff("v2", successor="v1"), "is not the default"),
        (machine.SwitchOff("v1", successor="v1"), "own successor"),
        (machine.RemoveRevision("v1"), "gets 100 %"),
    ],
)
def test_what_would_leave_callers_without_an_answer_by_accident_is_a_conflict(command: Command, says: str) -> None:
    with pytest.raises(Conflict, match=says):
        step(deployed("v1", "v2"), command)


def test_one_part_of_a_split_cannot_be_switched_off_without_saying_who_gets_it() -> None:
    function = after(shares(v1=95, v2=5), function=deployed("v1", "v2"))

    with pytest.raises(Conflict, match="5 % of a split"):
        step(function, machine.SwitchOff("v2"))


@pytest.mark.parametrize(
    "command",
    [
        machine.SwitchOn("nope"),
        machine.SwitchOff("nope"),
        machine.SwitchOff("v1", successor="nope"),
        machine.Stop("nope"),
        machine.Start("nope"),
        machine.SetScale("nope", Scale()),
        machine.RemoveRevision("nope"),
        shares(v1=50, nope=50),
    ],
)
def test_an_unknown_revision_is_not_found_and_nothing_changes(command: Command) -> None:
    with pytest.raises(NotFound, match="nope"):
        step(deployed("v1"), command)


def test_an_unknown_function_is_not_found() -> None:
    with pytest.raises(NotFound, match="hello"):
        machine.step(None, KEY, machine.SwitchOn("v1"), now_s=NOW_S)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (shares(v1=50, v2=49), "sum to 99"),
        (shares(v1=100, v2=1), "sum to 101"),
        (shares(v1=100, v2=0), "between 1 and 100"),
        (shares(v1=-5, v2=105), "between 1 and 100"),
        (machine.SetSplit(()), "sum to 0"),
        (machine.SetSplit((Share(revision="v1", percent=50),) * 2), "named twice"),
    ],
)
def test_a_split_that_does_not_sum_to_a_hundred_is_refused(split: machine.SetSplit, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        step(deployed("v1", "v2"), split)


def test_stopping_the_default_elects_nobody() -> None:
    function = after(machine.Stop("v1"), function=deployed("v1", "v2"))

    assert function.state.split == (V1,)
    assert function.state.revisions[0].phase is RevisionPhase.STOPPED


def test_a_stopped_revision_cannot_get_requests_until_it_is_started() -> None:
    function = after(machine.Stop("v2"), function=deployed("v1", "v2"))
    with pytest.raises(Conflict, match="stopped"):
        step(function, machine.SwitchOn("v2"))

    assert after(machine.Start("v2"), machine.SwitchOn("v2"), function=function).state.default == "v2"


def test_deploying_a_stopped_revision_again_starts_it() -> None:
    function = after(machine.Stop("v1"), Deploy("v1", "print-v1"), function=deployed("v1"))

    assert function.state.revisions[0].phase is RevisionPhase.ACTIVE


def test_a_broken_default_leaves_nobody_in_its_place_unless_the_owner_said_so() -> None:
    function = after(machine.SwitchOn("v2"), function=deployed("v1", "v2"))

    broken = after(Break("v2", "print-v2", "it traps"), function=function)

    assert broken.state.split == (V2,)
    assert broken.state.revisions[1].phase is RevisionPhase.BROKEN


def test_the_default_before_takes_over_from_a_broken_one_if_the_owner_said_so() -> None:
    function = after(Deploy("v1", "print-v1", on_break=OnBreak.PREVIOUS), Deploy("v2", "print-v2", default=True))

    change = step(function, Break("v2", "print-v2", "it traps"))

    assert change.function.state.split == (V1,)
    assert "back to v1" in change.text


def test_no_earlier_split_takes_over_when_it_names_what_cannot_run() -> None:
    function = after(
        Deploy("v1", "print-v1", on_break=OnBreak.PREVIOUS), Deploy("v2", "print-v2", default=True), machine.Stop("v1")
    )

    change = step(function, Break("v2", "print-v2", "it traps"))

    assert change.function.state.split == (V2,)
    assert "no earlier split" in change.text


def test_a_breaker_that_comes_late_does_not_break_what_was_deployed_meanwhile() -> None:
    function = deployed("v1")

    assert step(function, Break("v1", "of an older content", "it trapped")).action == ""
    assert step(function, Break("gone", "x", "it trapped")).action == ""


def test_a_rollback_restores_split_scale_and_phase_and_keeps_what_was_deployed_since() -> None:
    first = after(machine.SetScale("v1", Scale(min=2)), function=deployed("v1"))
    later = after(
        Deploy("v2", "print-v2", default=True),
        machine.SetScale("v1", Scale(min=0)),
        machine.Stop("v1"),
        function=first,
    )

    back = after(machine.Rollback(entry_of(first)), function=later)

    assert back.state.split == first.state.split
    assert back.state.revisions[0] == first.state.revisions[0]
    assert [each.name for each in back.state.revisions] == ["v1", "v2"]
    assert back.version == later.version + 1


def test_a_removed_function_is_not_found_and_a_rollback_brings_it_back() -> None:
    function = deployed("v1")
    removed = after(machine.Remove(), function=function)
    assert removed.removed
    with pytest.raises(NotFound):
        step(removed, machine.SwitchOn("v1"))

    back = after(machine.Rollback(entry_of(function)), function=removed)

    assert not back.removed
    assert back.state.split == (V1,)


def test_a_removed_function_that_is_deployed_again_begins_anew_and_goes_on_counting() -> None:
    removed = after(machine.Remove(), function=deployed("v1", "v2"))

    again = after(Deploy("v3", "x"), function=removed)

    assert [each.name for each in again.state.revisions] == ["v3"]
    assert again.state.default == "v3"
    assert again.version == removed.version + 1


def test_there_is_nothing_to_go_back_to_in_a_state_without_revisions() -> None:
    removed = after(machine.Remove(), function=deployed("v1"))

    with pytest.raises(Conflict, match="no revisions"):
        step(removed, machine.Rollback(entry_of(removed)))


def test_old_revisions_leave_beyond_the_limit_but_never_those_that_are_needed() -> None:
    function = deployed("v1", "v2", "v3")

    pruned = after(Deploy("v4", "x", revisions_max=3), function=function)

    assert [each.name for each in pruned.state.revisions] == ["v1", "v3", "v4"]
    with pytest.raises(TooLarge, match="revisions_max"):
        step(deployed("v1"), Deploy("v2", "x", revisions_max=1))


def test_two_names_cannot_run_together_into_one() -> None:
    keys = {(FunctionKey("t", "a-b"), "c"), (FunctionKey("t", "a"), "b-c"), (FunctionKey("t-a", "b"), "c")}

    assert len(keys) == 3
    assert len({str(FunctionKey("t", "a-b")), str(FunctionKey("t", "a"))}) == 2


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "a@b", "ä", "a" * 64, "a\n", "..", "%2e"])
def test_a_function_has_a_name_that_is_a_label_of_a_host(name: str) -> None:
    with pytest.raises(InvalidSpec):
        check_function_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a-", "a/b", "a@b", "A", "a" * 64, "a b", "a\r\nb"])
def test_a_revision_has_a_name_that_is_safe_in_a_path_and_a_header(name: str) -> None:
    with pytest.raises(InvalidSpec):
        check_revision_name(name)


def test_everything_that_is_wrong_with_a_spec_is_told_at_once() -> None:
    spec = RevisionSpec(
        module="x",
        kind=Kind.WASI_COMMAND,
        limits=Limits(memory_bytes=1, cpu_s=0.0, concurrency=0),
        env={"A=B": "c", "D": "\0"},
        preopens=(
            Preopen(guest="/a/", tree=MODULE),
            Preopen(guest="/a/../b", tree=MODULE),
            Preopen(guest="relative", tree=MODULE),
            Preopen(guest="/both", tree=MODULE, volume="v"),
            Preopen(guest="/tree", tree=MODULE, writable=True),
        ),
        outbound=("ftp://x", "https://user@host", "http://ok.example:80"),
    )

    with pytest.raises(InvalidSpec) as caught:
        check_spec(spec)

    assert len(caught.value.mistakes) == 14


def test_a_right_spec_is_accepted_and_equal_specs_have_equal_fingerprints() -> None:
    spec = RevisionSpec(
        module=MODULE, kind=Kind.REACTOR, env={"A": "1", "B": "2"}, preopens=(Preopen(guest="/a/b", tree=MODULE),)
    )
    same = RevisionSpec(
        module=MODULE, kind=Kind.REACTOR, env={"B": "2", "A": "1"}, preopens=(Preopen(guest="/a/b", tree=MODULE),)
    )

    check_spec(spec)

    assert fingerprint(spec) == fingerprint(same)
    assert fingerprint(spec) != fingerprint(RevisionSpec(module=MODULE, kind=Kind.REACTOR))


def test_a_scale_whose_bounds_contradict_each_other_is_refused() -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_scale(Scale(min=5, max=2, target=0.0, idle_s=-1))

    assert len(caught.value.mistakes) == 3


def test_the_newest_other_split_is_found_in_the_history() -> None:
    states = [FunctionState(split=(V1,)), FunctionState(), FunctionState(split=(V2,)), FunctionState(split=(V2,))]
    history = [
        HistoryEntry(key=KEY, version=number, at_s=0.0, actor="", action="", text="", state=state)
        for number, state in enumerate(states, 1)
    ][::-1]

    found = machine.earlier_split(history, (V2,))

    assert found is not None
    assert found.version == 1
    assert machine.earlier_split(history[:2], (V2,)) is None
