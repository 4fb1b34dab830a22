"""What must never happen to functions, whatever their owners do; and that tables and plans hold in any fleet."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from corral.functions import machine, placing, scaling
from corral.functions.config import FunctionsConfig
from corral.functions.machine import Change, Command, Function, HistoryEntry
from corral.functions.model import (
    EngineCapacity,
    FunctionKey,
    InstancePhase,
    Kind,
    Limits,
    OnBreak,
    RevisionKey,
    RevisionPhase,
    RevisionSpec,
    Scale,
    Share,
)
from corral.functions.placing import Placed, Seat, Want
from corral.functions.routing import Backend, FunctionRoute, RevisionRoute, RoutingTable, applied, difference
from corral.functions.scaling import ScaleState, scaled
from corral.kernel.errors import CorralError

KEY = FunctionKey("default", "f")
NAMES = st.sampled_from(["v1", "v2", "v3", "v4"])
PRINTS = st.sampled_from(["a", "b"])
PERCENTS = st.integers(-10, 110)


class Owners(RuleBasedStateMachine):
    """Several owners at once, each with its own idea of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.function: Function | None = None
        self.history: list[HistoryEntry] = []
        self.now_s = 0.0
        self.elected: set[tuple[Share, ...]] = {()}
        self.last: tuple[Command, Function | None, Change] | None = None

    def carry_out(self, command: Command) -> None:
        self.now_s += 1.0
        before = self.function
        try:
            change = machine.step(before, KEY, command, now_s=self.now_s)
        except CorralError:
            return
        if not change.action:
            assert change.function is before
            return
        assert change.function.version == (before.version if before else 0) + 1
        self.function = change.function
        self.history.append(change.entry("ann"))
        self.last = (command, before, change)

    @rule(name=NAMES, print_=PRINTS, default=st.sampled_from([None, True, False]), on_break=st.sampled_from(OnBreak))
    def deploy(self, name: str, print_: str, default: bool | None, on_break: OnBreak) -> None:
        self.carry_out(machine.Deploy(name, print_, default=default, on_break=on_break, revisions_max=3))

    @rule(name=NAMES)
    def switch_on(self, name: str) -> None:
        self.carry_out(machine.SwitchOn(name))

    @rule(name=NAMES, successor=st.one_of(st.just(""), NAMES))
    def switch_off(self, name: str, successor: str) -> None:
        self.carry_out(machine.SwitchOff(name, successor))

    @rule(parts=st.dictionaries(NAMES, PERCENTS, max_size=3), fixed=st.booleans())
    def split(self, parts: dict[str, int], fixed: bool) -> None:
        if fixed and parts:
            first = next(iter(parts))
            parts[first] = 100 - sum(percent for name, percent in parts.items() if name != first)
        self.carry_out(machine.SetSplit(tuple(Share(revision=name, percent=part) for name, part in parts.items())))

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        if self.history:
            self.carry_out(machine.Rollback(data.draw(st.sampled_from(self.history))))

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        self.carry_out(machine.Stop(name))

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        self.carry_out(machine.Start(name))

    @rule(name=NAMES, print_=PRINTS)
    def break_(self, name: str, print_: str) -> None:
        self.carry_out(machine.Break(name, print_, "it traps"))

    @rule(name=NAMES)
    def remove_revision(self, name: str) -> None:
        self.carry_out(machine.RemoveRevision(name))

    @rule()
    def remove(self) -> None:
        self.carry_out(machine.Remove())

    @invariant()
    def a_split_is_whole_or_empty_and_names_what_is_deployed(self) -> None:
        if self.function is None:
            return
        split = self.function.state.split
        names = [each.name for each in self.function.state.revisions]
        assert sum(each.percent for each in split) in ((100,) if split else (0,))
        assert all(1 <= each.percent <= 100 for each in split)
        assert len({each.revision for each in split}) == len(split)
        assert {each.revision for each in split} <= set(names)
        assert len(set(names)) == len(names)

    @invariant()
    def the_history_tells_everything(self) -> None:
        if self.function is None:
            return
        assert [entry.version for entry in self.history] == list(range(1, len(self.history) + 1))
        assert self.history[-1].state == self.function.state
        assert self.history[-1].removed is self.function.removed

    @invariant()
    def nobody_is_elected_silently(self) -> None:
        """A revision gets requests because a command named it, or the owner let the one before take over."""
        if self.last is None:
            return
        command, before, change = self.last
        was = {each.revision for each in before.state.split} if before else set()
        new = {each.revision for each in change.function.state.split} - was
        match command:
            case machine.SwitchOn() | machine.Deploy():
                allowed = {command.revision}
            case machine.SwitchOff():
                allowed = {command.successor}
            case machine.SetSplit():
                allowed = {each.revision for each in command.shares}
            case machine.Rollback():
                allowed = {each.revision for each in command.to.state.split}
            case machine.Break():
                followed = before is not None and before.state.on_break is OnBreak.PREVIOUS
                allowed = {each.revision for each in before.state.before} if before and followed else set()
            case _:
                allowed = set()
        assert new <= allowed

    @invariant()
    def a_rollback_is_exact(self) -> None:
        if self.last is None or not isinstance(self.last[0], machine.Rollback):
            return
        state, wanted = self.last[2].function.state, self.last[0].to.state
        assert state.split == wanted.split
        assert state.revisions[: len(wanted.revisions)] == wanted.revisions

    @invariant()
    def requests_are_only_given_to_what_can_run(self) -> None:
        if self.last is None or not isinstance(self.last[0], machine.SwitchOn | machine.SetSplit):
            return
        state = self.last[2].function.state
        for share in state.split:
            found = state.revision(share.revision)
            assert found is not None
            assert found.phase is RevisionPhase.ACTIVE


TestOwners = Owners.TestCase
TestOwners.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=30)


def a_spec(memory_bytes: int = 65_536) -> RevisionSpec:
    module = "b3:" + "0" * 64 + "-8"
    return RevisionSpec(module=module, kind=Kind.WASI_COMMAND, limits=Limits(memory_bytes=memory_bytes))


def keys(count: int) -> list[RevisionKey]:
    return [RevisionKey(KEY, f"v{number}", "f") for number in range(count)]


SEATS = st.lists(
    st.builds(
        lambda instances, memory, kinds, state: (instances, memory, kinds, state),
        st.integers(0, 4),
        st.sampled_from([0, 10_000, 200_000]),
        st.booleans(),
        st.sampled_from(["open", "leaving", "gone"]),
    ),
    max_size=4,
)
PLACED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from(InstancePhase)), max_size=10)
WANTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), max_size=4, unique_by=lambda w: w[0]
)


@given(SEATS, PLACED, WANTS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_carrying_out_a_plan_leaves_nothing_to_plan_and_no_worker_is_overfull(
    seats: list[Any], placed: list[Any], wants: list[Any]
) -> None:
    names = keys(5)
    fleet = [
        Seat(
            worker=f"w{number}",
            capacity=EngineCapacity(
                engine="e", kinds=tuple(Kind) if able else (), instances=instances, memory_bytes=memory
            ),
            open=state == "open",
            leaving=state == "leaving",
        )
        for number, (instances, memory, able, state) in enumerate(seats)
    ]
    there = {
        f"i{number}": Placed(id=f"i{number}", key=names[key], worker=f"w{worker}", phase=phase)
        for number, (key, worker, phase) in enumerate(placed)
        if worker < len(fleet) and phase in (InstancePhase.STARTING, InstancePhase.READY)
    }
    before = {worker: sum(each.worker == worker for each in there.values()) for worker in {s.worker for s in fleet}}
    wanted = [Want(key=names[key], spec=a_spec(), count=count, spare=min(spare, count)) for key, count, spare in wants]

    for _ in range(3):
        plan = placing.plan(fleet, list(there.values()), wanted, now_s=0.0)
        for name in plan.remove:
            del there[name]
        for number, place in enumerate(plan.place):
            name = f"n{len(there)}-{number}-{place.worker}"
            there[name] = Placed(id=name, key=place.key, worker=place.worker, phase=InstancePhase.READY)
        for seat in fleet:
            count = sum(each.worker == seat.worker for each in there.values())
            assert count <= max(seat.capacity.instances, before[seat.worker])
        there = {
            name: Placed(id=name, key=each.key, worker=each.worker, phase=InstancePhase.READY)
            for name, each in there.items()
        }
    last = placing.plan(fleet, list(there.values()), wanted, now_s=0.0)

    assert (last.place, last.remove) == ((), ())
    missing = {each.key for each in last.unmet}
    for want in wanted:
        staying = [
            each
            for each in there.values()
            if each.key == want.key and not any(seat.worker == each.worker and seat.leaving for seat in fleet)
        ]
        assert len(staying) == want.count or (want.key in missing and len(staying) < want.count)


@given(
    st.builds(Scale, min=st.integers(0, 3), max=st.integers(3, 6), target=st.sampled_from([0.5, 1.0, 4.0])),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 40)), max_size=30),
    st.booleans(),
)
@settings(derandomize=True, deadline=None)
def test_instances_follow_demand_up_at_once_and_down_only_after_a_while(
    scale: Scale, demands: list[tuple[float, int]], serving: bool
) -> None:
    state, now_s = ScaleState(), 0.0
    for pause_s, demand in demands:
        now_s += pause_s
        after = scaled(state, scale, demand=demand, serving=serving, now_s=now_s)
        assert (scale.min if serving else 0) <= after.wanted <= scale.max
        assert after.wanted >= min(math.ceil(demand / scale.target), scale.max)
        if after.wanted < state.wanted:
            assert state.low_since_s is not None
            assert now_s >= state.low_since_s + scale.idle_s
        state = after
    for _ in range(4):
        now_s += scale.idle_s
        state = scaled(state, scale, demand=0, serving=serving, now_s=now_s)
    assert state.wanted == (scale.min if serving else 0)


ROUTES = st.dictionaries(
    st.sampled_from([FunctionKey(tenant, name) for tenant in ("t", "u") for name in ("a", "b", "c")]),
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 3), max_size=3)),
)


def a_table(version: int, functions: dict[FunctionKey, tuple[int, list[int]]]) -> RoutingTable:
    return RoutingTable(
        epoch="e",
        version=version,
        functions={
            key: FunctionRoute(
                key=key,
                version=number,
                revisions=tuple(
                    RevisionRoute(
                        key=RevisionKey(key, f"v{place}", "f"),
                        percent=0,
                        limits=Limits(),
                        backends=tuple(
                            Backend(instance=f"i{each}", worker="w", address="a") for each in range(backends)
                        ),
                    )
                    for place, backends in enumerate(revisions)
                ),
            )
            for key, (number, revisions) in functions.items()
        },
    )


@given(st.lists(ROUTES, min_size=1, max_size=6), st.sets(st.integers(0, 5)))
@settings(derandomize=True, deadline=None)
def test_a_front_that_applies_every_update_has_the_table_and_one_that_missed_some_knows_it(
    tables: list[dict[FunctionKey, tuple[int, list[int]]]], missed: set[int]
) -> None:
    front, behind = a_table(0, {}), a_table(0, {})
    for number, functions in enumerate(tables, 1):
        truth = a_table(number, functions)
        after = applied(front, difference(front, truth))
        assert after == truth
        update = difference(front, truth)
        if number not in missed:
            late = applied(behind, update)
            assert (late is None) is (behind.version != front.version)
            if late is not None:
                behind = late
                assert late == truth
        front = truth


@given(st.integers(1, 40), st.integers(0, 40))
@settings(derandomize=True, deadline=None)
def test_only_a_revision_that_never_answers_well_is_broken(requests: int, good: int) -> None:
    config = FunctionsConfig()
    good = min(good, requests)
    health = scaling.counted(scaling.Health(), requests=0, bad=0, now_s=0.0, config=config)

    health = scaling.counted(health, requests=requests, bad=requests - good, now_s=1.0, config=config)

    assert bool(health.broken) is (good == 0 and requests >= config.breaker_requests)
