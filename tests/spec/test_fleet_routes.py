"""Which worker a client is sent to, and what the token that it gets is good for."""

import base64
import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from corral.fleet.adapters.messages import state_from_message, state_to_message
from corral.fleet.machine import Candidate, place
from corral.fleet.members import Worker
from corral.fleet.model import Capacity, Registration, RunRef, WorkerPhase, WorkerState
from corral.fleet.routes import Router
from corral.fleet.tokens import TTL_S, Expected, RouteClaims, SigningKey, TokenRefused, is_signed, key_of, verify
from corral.kernel.errors import InvalidSpec, NoFeasibleWorker
from corral.testing.clocks import HandClock

_CLAIMS = RouteClaims(
    tenant="acme", image="sha256:1", worker="wrk-1", purpose="compile", iat=1000.0, exp=1300.0, jti="r1"
)
_EXPECTED = Expected(worker="wrk-1", purpose="compile", tenant="acme", image="sha256:1")


def _refusal(token: str, key: SigningKey, expected: Expected = _EXPECTED, now_s: float = 1100.0) -> str:
    with pytest.raises(TokenRefused) as caught:
        verify(token, key.public, expected, now_s=now_s)
    assert caught.value.message == "the token is not valid here"
    return caught.value.reason


def test_a_token_is_good_for_what_it_names() -> None:
    key = SigningKey()

    assert verify(key.token(_CLAIMS), key.public, _EXPECTED, now_s=1100.0) == _CLAIMS
    assert verify(key.token(_CLAIMS), key.public, replace(_EXPECTED, image=None), now_s=1299.0) == _CLAIMS


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (replace(_EXPECTED, worker="wrk-2"), "for another worker"),
        (replace(_EXPECTED, purpose="session"), "for another purpose"),
        (replace(_EXPECTED, tenant="evil"), "for another tenant"),
        (replace(_EXPECTED, image="sha256:2"), "for another image"),
    ],
)
def test_a_token_is_good_for_nothing_else(expected: Expected, reason: str) -> None:
    key = SigningKey()

    assert _refusal(key.token(_CLAIMS), key, expected) == reason


@pytest.mark.parametrize("now_s", [1300.0, 5000.0, 900.0])
def test_a_token_ends_and_does_not_begin_early(now_s: float) -> None:
    key = SigningKey()

    assert _refusal(key.token(_CLAIMS), key, now_s=now_s) == "expired, or not valid yet"


def test_a_token_may_not_claim_more_time_than_the_scheduler_gives() -> None:
    from msgspec.structs import replace as with_fields  # noqa: PLC0415 (the name is taken)

    key = SigningKey()
    eternal = with_fields(_CLAIMS, exp=_CLAIMS.iat + TTL_S + 1)

    assert _refusal(key.token(eternal), key) == "expired, or not valid yet"


def test_a_forged_token_is_refused_whatever_it_says_of_itself() -> None:
    key, other = SigningKey(), SigningKey()
    token = key.token(_CLAIMS)
    head, body, signature = token.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()

    assert _refusal(other.token(_CLAIMS), key) == "forged, or signed by another scheduler"
    assert _refusal(f"{head}.{body[:-2]}QQ.{signature}", key) in ("forged, or signed by another scheduler", "malformed")
    assert _refusal(f"{none}.{body}.", key) == "algorithm none"
    for broken in ("", "a.b", "a.b.c", f"{head}.{body}.!", "x" * 9000):
        assert _refusal(broken, key) == "malformed"
    assert key_of(token) == key.public[:8].hex()


def test_a_signature_is_for_one_message_of_one_signer() -> None:
    key = SigningKey(bytes(32))

    assert is_signed(key.public, b"result", key.sign(b"result"))
    assert not is_signed(key.public, b"another", key.sign(b"result"))
    assert not is_signed(SigningKey().public, b"result", key.sign(b"result"))
    assert not is_signed(b"short", b"result", key.sign(b"result"))


def test_the_least_loaded_worker_gets_the_next_execution() -> None:
    workers = [Candidate(worker_id="a", slots=4, busy=2), Candidate(worker_id="b", slots=4, busy=1)]

    assert place(workers, image="") == "b"


def test_a_large_worker_takes_more_than_a_small_one() -> None:
    workers = [Candidate(worker_id="large", slots=16, busy=3), Candidate(worker_id="small", slots=2, busy=1)]

    assert place(workers, image="") == "large"


def test_a_worker_that_has_the_image_comes_before_one_that_has_not_but_no_worker_is_excluded_for_that() -> None:
    has = Candidate(worker_id="has", slots=8, busy=7, images={"i"})
    lacks = Candidate(worker_id="lacks", slots=8)

    assert place([has, lacks], image="i") == "has"
    assert place([replace(has, busy=8), lacks], image="i") == "lacks"
    assert place([has, lacks], image="") == "lacks"


def test_a_warm_sandbox_attracts_but_does_not_pin_a_parallel_build() -> None:
    busy = 0
    placed = []
    for _ in range(6):
        warm = Candidate(worker_id="warm", slots=8, busy=busy, warm=True)
        cold = Candidate(worker_id="cold", slots=8)
        placed.append(place([warm, cold], image=""))
        busy += placed[-1] == "warm"

    assert placed == ["warm", "warm", "cold", "cold", "cold", "cold"]


def test_a_full_worker_gets_nothing_and_one_that_just_failed_comes_last() -> None:
    full = Candidate(worker_id="full", slots=2, busy=2)
    failed = Candidate(worker_id="failed", slots=2)
    loaded = Candidate(worker_id="loaded", slots=9, busy=8)

    assert place([full], image="") is None
    assert place([full, failed, loaded], image="", avoid={"failed"}) == "loaded"
    assert place([full, failed], image="", avoid={"failed"}) == "failed"


@dataclass
class _Fleet:
    """As much of the fleet as routes need."""

    workers: list[Worker] = field(default_factory=list)
    published: list[bytes] = field(default_factory=list)

    def dialable(self) -> list[Worker]:
        return self.workers

    def get(self, worker_id: str) -> Worker:
        return next(each for each in self.workers if each.registration.worker_id == worker_id)

    def publish_route_key(self, public: bytes) -> None:
        self.published.append(public)


def _worker(name: str, slots: int, *, runs: int = 0, executions: int = 0, **state: Any) -> Worker:
    return Worker(
        registration=Registration(
            worker_id=name,
            instance="i",
            capacity=Capacity(slots=slots),
            address=f"{name}:1",
            certificate_fingerprint="ff",
            result_key="aa",
        ),
        phase=WorkerPhase.READY,
        drain=False,
        registered_s=0.0,
        seen_s=0.0,
        state=WorkerState(
            slots_free=slots - runs,
            runs=tuple(RunRef(task_id="t", run=0, token=each) for each in range(runs)),
            executions=executions,
            **state,
        ),
    )


def _router(*workers: Worker) -> tuple[Router, _Fleet, HandClock]:
    fleet, clock, numbers = _Fleet(list(workers)), HandClock(1000.0), itertools.count()
    return Router(fleet, clock, new_id=lambda: f"r{next(numbers)}"), fleet, clock  # type: ignore[arg-type]


def _slots(router: Router, wanted: int, **more: object) -> dict[str, int]:
    routes = router.route("acme", image="", purpose="compile", slots=wanted, **more)  # type: ignore[arg-type]
    return {each.worker_id: each.slots for each in routes}


def test_many_slots_are_spread_over_the_fleet_and_counted_until_they_are_given_back() -> None:
    router, _, _ = _router(_worker("a", 4), _worker("b", 2, runs=1))

    first = router.route("acme", image="", purpose="compile", slots=9)

    assert {each.worker_id: each.slots for each in first} == {"a": 4, "b": 1}
    with pytest.raises(NoFeasibleWorker):
        _slots(router, 1)
    router.release("other-tenant", [each.id for each in first])
    with pytest.raises(NoFeasibleWorker):
        _slots(router, 1)
    router.release("acme", [each.id for each in first])
    assert _slots(router, 9) == {"a": 4, "b": 1}


def test_workers_tell_digests_and_a_client_may_name_an_image_with_its_digest() -> None:
    digest = "sha256:" + "1" * 64
    router, _, _ = _router(_worker("has", 8, runs=4, images=(digest,)), _worker("lacks", 8))

    (route,) = router.route("acme", image=f"registry:5000/gcc:13@{digest}", purpose="compile")

    assert route.worker_id == "has"


@pytest.mark.parametrize(
    ("pools", "chosen"),
    [
        ('{"pools": [{"key": {"tenant": "acme", "root": "/data/images/sha256-11/root"}, "idle": 1}]}', "busier"),
        ('{"pools": [{"key": {"tenant": "acme", "root": "/data/images/sha256-11/root"}, "idle": 0}]}', "idler"),
        ('{"pools": [{"key": {"tenant": "other", "root": "/data/images/sha256-11/root"}, "idle": 1}]}', "idler"),
        ('{"pools": [{"key": {"tenant": "acme", "root": ""}, "idle": 1}]}', "idler"),
        ("of another version", "idler"),
    ],
)
def test_a_sandbox_that_stands_ready_attracts_for_its_own_tenant_and_image(pools: str, chosen: str) -> None:
    router, _, _ = _router(_worker("busier", 8, runs=1, pools_json=pools), _worker("idler", 8))

    (route,) = router.route("acme", image="gcc@sha256:11", purpose="compile")

    assert route.worker_id == chosen


def test_a_promise_that_is_never_given_back_ends_with_its_token() -> None:
    router, _, clock = _router(_worker("a", 1))
    _slots(router, 1)

    clock.at_s += TTL_S + 1

    assert _slots(router, 1) == {"a": 1}


def test_a_heartbeat_arrives_as_it_was_sent() -> None:
    state = WorkerState(
        slots_free=1,
        runs=(RunRef(task_id="t", run=0, token=7),),
        images=("sha256:1",),
        draining=True,
        load=0.5,
        disk_free_bytes=10,
        memory_free_bytes=20,
        pools_json="{}",
        executions=3,
    )

    assert state_from_message(state_to_message(state)) == state


def test_executions_that_are_promised_and_told_are_counted_once() -> None:
    router, fleet, _ = _router(_worker("a", 4))
    _slots(router, 2)

    fleet.workers = [_worker("a", 4, executions=2)]

    assert _slots(router, 9) == {"a": 2}


def test_the_token_of_a_route_is_for_its_worker_and_workers_know_its_key() -> None:
    router, fleet, clock = _router(_worker("a", 1))

    (route,) = router.route("acme", image="sha256:1", purpose="compile")

    expected = Expected(worker="a", purpose="compile", tenant="acme", image="sha256:1")
    assert verify(route.token, fleet.published[0], expected, now_s=clock.at_s).jti == route.id
    assert (route.address, route.certificate_fingerprint, route.result_key) == ("a:1", "ff", "aa")
    assert len(fleet.published) == 1


def test_a_route_for_nothing_or_for_too_much_is_refused() -> None:
    router, _, _ = _router(_worker("a", 1))

    for purpose, slots in (("mining", 1), ("compile", 0), ("compile", 10_000)):
        with pytest.raises(InvalidSpec):
            router.route("acme", image="", purpose=purpose, slots=slots)
