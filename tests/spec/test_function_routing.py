"""Where requests go: names, revisions, splits, instances, and how tables travel."""

from collections import Counter

import pytest

from corral.functions.model import FunctionKey, Limits, RevisionKey
from corral.functions.routing import (
    Activate,
    Backend,
    FunctionRoute,
    NoRoute,
    RevisionRoute,
    Routed,
    Router,
    RoutingTable,
    RoutingUpdate,
    applied,
)

HELLO = FunctionKey("default", "hello")


def a_revision(name: str, percent: int, backends: int = 1, key: FunctionKey = HELLO, closed: str = "") -> RevisionRoute:
    live = tuple(Backend(instance=f"{name}-{n}", worker="wrk", address="127.0.0.1:1") for n in range(backends))
    return RevisionRoute(
        key=RevisionKey(key, name, "f"), percent=percent, limits=Limits(), backends=live, closed=closed
    )


def a_table(*revisions: RevisionRoute, why_none: str = "") -> RoutingTable:
    route = FunctionRoute(key=HELLO, version=1, revisions=revisions, why_none=why_none)
    return RoutingTable(epoch="e", version=1, functions={HELLO: route})


def picked(
    table: RoutingTable, path: str, *, host: str = "x", roll: float = 0.0, domains: dict[str, str] | None = None
) -> tuple[str, str]:
    """Revision and path, or status and code."""
    found = Router.pick(table, host=host, path=path, rolls=(roll, 0.5, 0.5), in_flight=lambda _: 0, domains=domains)
    if isinstance(found, NoRoute):
        return str(found.status), found.code
    return found.revision.key.revision, found.path


TABLE = a_table(a_revision("v1", 100), a_revision("v2", 0))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/functions/hello", ("v1", "/")),
        ("/functions/hello/", ("v1", "/")),
        ("/functions/hello/a//b/", ("v1", "/a//b/")),
        ("/functions/hello/v2", ("v2", "/")),
        ("/functions/hello/v2/a/b", ("v2", "/a/b")),
        ("/functions/hello/v3/a", ("v1", "/v3/a")),
        ("/functions/hello@v2/v1/a", ("v2", "/v1/a")),
        ("/functions/hello@v3", ("404", "revision-not-found")),
        ("/tenants/default/functions/hello/v2/x", ("v2", "/x")),
        ("/tenants/acme/functions/hello", ("404", "function-not-found")),
        ("/functions/nobody", ("404", "function-not-found")),
        ("/functions/", ("404", "function-not-found")),
        ("/functions", ("404", "function-not-found")),
        ("/function/hello", ("404", "not-found")),
        ("/", ("404", "not-found")),
        ("/functions/../hello", ("404", "function-not-found")),
        ("/functions/%68ello", ("404", "function-not-found")),
    ],
)
def test_a_path_names_a_function_a_revision_and_what_the_function_sees(path: str, expected: tuple[str, str]) -> None:
    assert picked(TABLE, path) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("hello.fn.example.org", ("v1", "/a")),
        ("HELLO.fn.example.org:8080", ("v1", "/a")),
        ("v2.hello.fn.example.org", ("v2", "/a")),
        ("nobody.fn.example.org", ("404", "function-not-found")),
        ("fn.example.org", ("404", "not-found")),
        ("hello.fn.example.org.evil.net", ("404", "not-found")),
        ("hellofn.example.org", ("404", "not-found")),
    ],
)
def test_a_host_name_names_a_function_too(host: str, expected: tuple[str, str]) -> None:
    assert picked(TABLE, "/a", host=host, domains={"default": "fn.example.org"}) == expected


def test_a_function_without_a_default_is_503_with_the_reason() -> None:
    table = a_table(a_revision("v1", 0), why_none="v1 was switched off without a successor")

    found = Router.pick(table, host="", path="/functions/hello", rolls=(0.1, 0.1, 0.1), in_flight=lambda _: 0)

    assert isinstance(found, NoRoute)
    assert found.status == 503
    assert "v1 was switched off" in found.text


def test_a_revision_without_instances_waits_and_a_closed_one_does_not() -> None:
    table = a_table(a_revision("v1", 100, backends=0), a_revision("v2", 0, closed="it is stopped"))

    found = Router.pick(table, host="", path="/functions/hello", rolls=(0.1, 0.1, 0.1), in_flight=lambda _: 0)

    assert isinstance(found, Activate)
    assert picked(table, "/functions/hello/v2") == ("503", "revision-closed")


def test_the_split_is_exact_over_evenly_spread_rolls() -> None:
    table = a_table(a_revision("v1", 95), a_revision("v2", 4), a_revision("v3", 0), a_revision("v4", 1))

    answers = Counter(picked(table, "/functions/hello", roll=number / 1000)[0] for number in range(1000))

    assert answers == {"v1": 950, "v2": 40, "v4": 10}


def test_the_less_loaded_of_two_is_taken_and_never_one_that_failed_already() -> None:
    table = a_table(a_revision("v1", 100, backends=3))
    load = {"v1-0": 5, "v1-1": 1, "v1-2": 9}

    def picks(tried: tuple[str, ...]) -> Counter[str]:
        found: Counter[str] = Counter()
        for first in range(10):
            for second in range(10):
                routed = Router.pick(
                    table,
                    host="",
                    path="/functions/hello",
                    rolls=(0.0, first / 10, second / 10),
                    in_flight=lambda instance: load[instance],
                    tried=tried,
                )
                assert isinstance(routed, Routed)
                found[routed.backend.instance] += 1
        return found

    free = picks(())
    assert free["v1-2"] == 0  # of two, the fullest is never the less loaded
    assert free["v1-1"] > free["v1-0"]
    assert set(picks(("v1-1",))) == {"v1-0"}


def test_an_update_that_misses_one_before_is_not_applied() -> None:
    table = RoutingTable(epoch="e", version=3)

    assert applied(table, RoutingUpdate(epoch="e", base=2, version=4)) is None
    assert applied(table, RoutingUpdate(epoch="other", base=3, version=4)) is None
    after = applied(table, RoutingUpdate(epoch="e", base=3, version=4))
    assert after is not None
    assert after.version == 4
