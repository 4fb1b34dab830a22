"""The table of routes: made anew for what changed, told to fronts as differences, and since when who routes by what."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import msgspec

from corral.functions.machine import Function
from corral.functions.model import FunctionKey, FunctionsReport, RevisionKey, RevisionPhase
from corral.functions.registry import Registry
from corral.functions.routing import Backend, FunctionRoute, RevisionRoute, RoutingTable, RoutingUpdate, difference

Backends = Callable[[RevisionKey], tuple[Backend, ...]]
"""The instances of a revision that answer."""


class Routes:
    """See the module. ``dirty`` are functions whose routes may have changed; ``rebuild`` cleans them."""

    def __init__(self, registry: Registry, backends: Backends, *, epoch: str, domains: dict[str, str]) -> None:
        self._registry, self._backends, self._domains = registry, backends, domains
        self._since: dict[FunctionKey, tuple[int, int]] = {}
        self.dirty: set[FunctionKey] = set()
        self.table = RoutingTable(epoch=epoch, version=1)

    def rebuild(self) -> bool:
        """Make routes for what is dirty; False when nothing was."""
        if not self.dirty:
            return False
        functions = dict(self.table.functions)
        for key in self.dirty:
            function = self._registry.find(key)
            if function is None or function.removed:
                functions.pop(key, None)
            else:
                functions[key] = self._route(function)
        if functions != self.table.functions:
            self.table = replace(self.table, version=self.table.version + 1, functions=functions)
        self._note_versions(self.dirty)
        self.dirty.clear()
        return True

    def since(self, told: RoutingTable | None) -> RoutingUpdate | None:
        """What a front that has ``told`` must hear; None when nothing."""
        table = self.table
        if told is table:
            return None
        if told is not None:
            return msgspec.structs.replace(difference(told, table), domains=self._domains)
        whole = RoutingUpdate(epoch=table.epoch, base=0, version=table.version, whole=True, domains=self._domains)
        return msgspec.structs.replace(whole, changed=tuple(table.functions.values()))

    def used_by_all(self, key: FunctionKey, version: int, reports: Iterable[FunctionsReport]) -> bool:
        """Whether every front routes by this version of the function, or a later one.

        Fronts have all of a table or an older one, so it is enough to compare with when this version came in.
        """
        if key in self.dirty:
            return False
        since = self._since.get(key, (0, 0))
        return since[0] >= version and all(
            report.routes_epoch == self.table.epoch and report.routes_version >= since[1]
            for report in reports
            if report.capacity.front
        )

    def _note_versions(self, keys: Collection[FunctionKey]) -> None:
        for key in keys:
            function = self._registry.find(key)
            if function is None:
                self._since.pop(key, None)
            elif self._since.get(key, (0, 0))[0] < function.version:
                self._since[key] = (function.version, self.table.version)

    def _route(self, function: Function) -> FunctionRoute:
        state = function.state
        revisions = []
        for entry in state.revisions:
            key = function.revision_key(entry)
            spec = self._registry.specs().get(key)
            if spec is None:
                continue
            closed = "" if entry.phase is RevisionPhase.ACTIVE else f"it is {entry.phase.value}"
            revisions.append(
                RevisionRoute(
                    key=key,
                    percent=state.percent(entry.name),
                    limits=spec.limits,
                    backends=() if closed else self._backends(key),
                    closed=closed,
                )
            )
        return FunctionRoute(
            key=function.key, version=function.version, revisions=tuple(revisions), why_none=state.why_none
        )
