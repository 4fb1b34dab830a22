"""Where a request goes, as pure functions over a table that fronts hold in memory; nothing here waits.

The scheduler makes the table and pushes what changed of it to every front (``RoutingUpdate``). A front resolves the
function of a request, lets the split choose a revision, and takes the less loaded of two random live instances. A
revision without a live instance is no error: the request waits in a bounded queue, and the front says so in its
``Demand``, which makes the scheduler start one (activation).

Routes: ``/functions/NAME[/REVISION]/PATH``, ``/functions/NAME@REVISION/PATH`` (never ambiguous), the same below
``/tenants/TENANT`` for tenants other than the front's own, and host names ``[REVISION.]NAME.DOMAIN``. A first path
segment that is the name of a revision means that revision.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from corral.functions.model import FunctionKey, Limits, RevisionKey

DEFAULT_TENANT: Final = "default"


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A live instance. ``address`` is ``HOST:PORT``, or ``unix:PATH`` for fronts on the same ``worker``."""

    instance: str
    worker: str
    address: str


class RevisionRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A revision that may be called. ``percent`` is its part of the split; 0 means by name only.

    ``closed`` tells why it takes no requests, "" when it does (it is stopped or broken: 503, never activation).
    """

    key: RevisionKey
    percent: int
    limits: Limits
    backends: tuple[Backend, ...] = ()
    closed: str = ""


class FunctionRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A function that exists. Percentages sum to 100, or to 0 when it has no default.

    ``why_none`` is what callers hear of a function without a default. ``version`` is that of the registry's entry: it
    grows with every change that an owner makes, so an answer can be checked against the history.
    """

    key: FunctionKey
    version: int
    revisions: tuple[RevisionRoute, ...] = ()
    why_none: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """All functions. ``version`` grows with every push of one ``epoch`` (a scheduler's process)."""

    epoch: str = ""
    version: int = 0
    functions: Mapping[FunctionKey, FunctionRoute] = field(default_factory=dict)


class RoutingUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since ``base``; with ``whole`` everything, whatever the front had.

    Attributes:
        domains: tenant to the domain of its host names.
    """

    epoch: str
    base: int
    version: int
    whole: bool = False
    changed: tuple[FunctionRoute, ...] = ()
    removed: tuple[FunctionKey, ...] = ()
    domains: dict[str, str] = {}


def applied(table: RoutingTable, update: RoutingUpdate) -> RoutingTable | None:
    """The table after ``update``; None when an update between is missing, and a whole one is needed."""
    if update.whole:
        functions: dict[FunctionKey, FunctionRoute] = {}
    elif (update.epoch, update.base) != (table.epoch, table.version):
        return None
    else:
        functions = {key: route for key, route in table.functions.items() if key not in set(update.removed)}
    functions.update({route.key: route for route in update.changed})
    return RoutingTable(epoch=update.epoch, version=update.version, functions=functions)


def difference(before: RoutingTable, after: RoutingTable) -> RoutingUpdate:
    """The update that makes ``after`` of ``before``."""
    return RoutingUpdate(
        epoch=after.epoch,
        base=before.version,
        version=after.version,
        changed=tuple(
            route
            for key, route in after.functions.items()
            if (known := before.functions.get(key)) is not route and known != route
        ),
        removed=tuple(key for key in before.functions if key not in after.functions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which function a request is for; ``revision`` "" leaves the choice to the split. ``path`` begins with "/"."""

    function: FunctionRoute
    revision: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Send it there. ``path`` is what the function sees."""

    function: FunctionRoute
    revision: RevisionRoute
    backend: Backend
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """The revision lives, but has no live instance: wait in the queue, and tell the demand."""

    function: FunctionRoute
    revision: RevisionRoute
    path: str


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Answer ``status`` (404 or 503) with ``code`` and ``text``."""

    status: int
    code: str
    text: str


InFlight = Callable[[str], int]
"""Requests that the front has in flight in an instance."""


class Router:
    """The pure decisions of a front; holds nothing."""

    @staticmethod
    def resolve(
        table: RoutingTable,
        *,
        host: str,
        path: str,
        tenant: str = DEFAULT_TENANT,
        domains: Mapping[str, str] | None = None,
    ) -> Asked | NoRoute:
        """Find the function of a request. ``path`` is the raw path, without the query."""
        for owner, domain in (domains or {}).items():
            found = _by_host(table, host, path, owner, domain)
            if found is not None:
                return found
        return _by_path(table, path, tenant)

    @staticmethod
    def pick(
        table: RoutingTable,
        *,
        host: str,
        path: str,
        rolls: tuple[float, float, float],
        in_flight: InFlight,
        tried: Collection[str] = (),
        tenant: str = DEFAULT_TENANT,
        domains: Mapping[str, str] | None = None,
    ) -> Routed | Activate | NoRoute:
        """Resolve, choose the revision, choose the instance.

        ``rolls`` are three uniform numbers in [0, 1); ``tried`` are instances that failed this request already.
        """
        asked = Router.resolve(table, host=host, path=path, tenant=tenant, domains=domains)
        if isinstance(asked, NoRoute):
            return asked
        revision = choose_revision(asked, rolls[0])
        if isinstance(revision, NoRoute):
            return revision
        backend = choose_backend(revision, rolls[1:], in_flight=in_flight, tried=tried)
        if backend is None:
            return Activate(function=asked.function, revision=revision, path=asked.path)
        return Routed(function=asked.function, revision=revision, backend=backend, path=asked.path)


def choose_revision(asked: Asked, roll: float) -> RevisionRoute | NoRoute:
    """The named one, or the one that the split gives for ``roll``."""
    name = asked.function.key.name
    if asked.revision:
        named = _revision(asked.function, asked.revision)
        if named is None:
            return NoRoute(404, "revision-not-found", f'function "{name}" has no revision "{asked.revision[:70]}"')
        return _open(named)
    place = roll * 100
    for each in asked.function.revisions:
        if each.percent and place < each.percent:
            return _open(each)
        place -= each.percent
    why = asked.function.why_none or "switch a revision on"
    return NoRoute(503, "no-default-revision", f'function "{name}" has no default revision: {why}')


def _open(revision: RevisionRoute) -> RevisionRoute | NoRoute:
    if revision.closed:
        key = revision.key
        return NoRoute(503, "revision-closed", f'revision "{key.revision}" of "{key.function.name}": {revision.closed}')
    return revision


def choose_backend(
    revision: RevisionRoute, rolls: tuple[float, ...], *, in_flight: InFlight, tried: Collection[str] = ()
) -> Backend | None:
    """The less loaded of two random live instances; None when there is none that was not tried."""
    live = [each for each in revision.backends if each.instance not in tried] if tried else revision.backends
    if len(live) < 2:
        return live[0] if live else None
    first = int(rolls[0] * len(live))
    second = (first + 1 + int(rolls[1] * (len(live) - 1))) % len(live)
    return live[first] if in_flight(live[first].instance) <= in_flight(live[second].instance) else live[second]


def _by_host(table: RoutingTable, host: str, path: str, tenant: str, domain: str) -> Asked | NoRoute | None:
    labels = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host.lower()
    if not domain or not labels.endswith(f".{domain}"):
        return None
    revision, _, name = labels.removesuffix(f".{domain}").rpartition(".")
    return _asked(table, FunctionKey(tenant, name), revision, path)


def _by_path(table: RoutingTable, path: str, tenant: str) -> Asked | NoRoute:
    parts = path.split("/", 5)
    if parts[1:2] == ["tenants"] and parts[3:4] == ["functions"]:
        tenant, rest = parts[2], parts[4:]
    elif parts[1:2] == ["functions"]:
        rest = path.split("/", 3)[2:]
    else:
        return NoRoute(404, "not-found", "there is nothing here; functions are at /functions/NAME")
    name, _, revision = (rest[0] if rest else "").partition("@")
    return _asked(table, FunctionKey(tenant, name), revision, "/" + (rest[1] if len(rest) > 1 else ""))


def _asked(table: RoutingTable, key: FunctionKey, revision: str, path: str) -> Asked | NoRoute:
    function = table.functions.get(key)
    if function is None:
        return NoRoute(404, "function-not-found", f'there is no function "{key.name[:70]}"')
    if not revision:
        first, _, rest = path[1:].partition("/")
        if first and _revision(function, first) is not None:
            return Asked(function=function, revision=first, path=f"/{rest}")
    return Asked(function=function, revision=revision, path=path)


def _revision(function: FunctionRoute, name: str) -> RevisionRoute | None:
    return next((each for each in function.revisions if each.key.revision == name), None)
