"""Sharing slots between tenants: never idle, never unfair, never forgetful."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.tasks.fair_share import Demand, share

names = st.sampled_from(["red", "blue", "green", "grey"])


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    chosen = draw(st.lists(names, unique=True, max_size=4))
    return [
        Demand(
            tenant=name,
            pending=draw(st.integers(0, 50)),
            running=draw(st.integers(0, 20)),
            weight=draw(st.sampled_from([0.5, 1.0, 2.0, 5.0])),
            max_running=draw(st.sampled_from([1, 5, 20, 1000])),
        )
        for name in chosen
    ]


def room(demand: Demand) -> int:
    return max(0, min(demand.pending, demand.max_running - demand.running))


@settings(derandomize=True, deadline=None)
@given(demands(), st.integers(0, 64), st.dictionaries(names, st.floats(0, 100)))
def test_every_slot_is_used_while_somebody_may_have_one_more(
    wanted: list[Demand], slots: int, served: dict[str, float]
) -> None:
    grants = share(wanted, slots, served).grants

    assert sum(grants.values()) == min(slots, sum(room(demand) for demand in wanted))
    for demand in wanted:
        assert 0 <= grants.get(demand.tenant, 0) <= room(demand)


@settings(derandomize=True, deadline=None)
@given(demands(), st.integers(0, 64), st.dictionaries(names, st.floats(0, 100)))
def test_nobody_gets_one_more_while_another_that_wants_holds_less_for_its_weight(
    wanted: list[Demand], slots: int, served: dict[str, float]
) -> None:
    grants = share(wanted, slots, served).grants

    for rich in wanted:
        if not grants.get(rich.tenant, 0):
            continue
        last_held = (rich.running + grants[rich.tenant] - 1) / rich.weight
        for poor in wanted:
            if grants.get(poor.tenant, 0) < room(poor):
                assert (poor.running + grants.get(poor.tenant, 0)) / poor.weight >= last_held


@settings(derandomize=True, deadline=None)
@given(demands(), st.integers(0, 64), st.dictionaries(names, st.floats(0, 100)))
def test_what_was_served_only_grows_and_idleness_earns_no_credit(
    wanted: list[Demand], slots: int, served: dict[str, float]
) -> None:
    after = share(wanted, slots, served).served

    known = [served[name] for name in after if name in served]
    for name, value in after.items():
        assert value >= served.get(name, 0.0)
        assert value >= min(known, default=0.0)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0)])
def test_one_slot_of_quick_tasks_is_taken_in_turns_by_weight(weights: tuple[float, float]) -> None:
    served: dict[str, float] = {}
    taken = {"red": 0, "blue": 0}
    for _ in range(600):
        wanted = [
            Demand(tenant=name, pending=10_000, running=0, weight=weight)
            for name, weight in zip(taken, weights, strict=True)
        ]
        shares = share(wanted, 1, served)
        served = dict(shares.served)
        for name, count in shares.grants.items():
            taken[name] += count

    assert abs(taken["red"] - 600 * weights[0] / sum(weights)) <= 1


def test_a_backlog_of_one_tenant_does_not_delay_another_beyond_its_share() -> None:
    served: dict[str, float] = {}
    backlog, short, rounds = 2000, 20, 0
    while short:
        shares = share(
            [
                Demand(tenant="red", pending=backlog, running=0),
                Demand(tenant="blue", pending=short, running=0),
            ],
            4,
            served,
        )
        served = dict(shares.served)
        backlog -= shares.grants.get("red", 0)
        short -= shares.grants.get("blue", 0)
        rounds += 1

    assert rounds == 10


def test_long_tasks_do_not_crowd_out_a_tenant_that_comes_later() -> None:
    grants = share(
        [Demand(tenant="red", pending=100, running=16), Demand(tenant="blue", pending=100, running=0)], 8, {}
    ).grants

    assert grants == {"blue": 8}
