"""The registry in memory, for tests; passes the stores' contract suite."""

from collections.abc import Collection, Mapping, Sequence

from corral.functions.machine import Change, Function, HistoryEntry
from corral.functions.model import FunctionKey, RevisionKey, RevisionSpec
from corral.functions.ports import Decide


class MemoryFunctionStore:
    """See ``FunctionStore``."""

    def __init__(self) -> None:
        self.functions: dict[FunctionKey, Function] = {}
        self.entries: dict[FunctionKey, list[HistoryEntry]] = {}
        self.known: dict[RevisionKey, RevisionSpec] = {}

    async def load(self) -> Sequence[Function]:
        return [self.functions[key] for key in sorted(self.functions)]

    async def change(
        self, key: FunctionKey, decide: Decide, *, actor: str, specs: Mapping[RevisionKey, RevisionSpec]
    ) -> Change:
        change = decide(self.functions.get(key))
        if change.action:
            self.functions[key] = change.function
            self.entries.setdefault(key, []).append(change.entry(actor))
            for name, spec in specs.items():
                self.known.setdefault(name, spec)
        return change

    async def specs(self, keys: Collection[RevisionKey]) -> Mapping[RevisionKey, RevisionSpec]:
        return {key: self.known[key] for key in keys if key in self.known}

    async def history(self, key: FunctionKey, *, limit: int, before: int | None = None) -> Sequence[HistoryEntry]:
        newest = reversed(self.entries.get(key, []))
        return [each for each in newest if before is None or each.version < before][:limit]

    async def forget(self, *, before_s: float, keep: int) -> int:
        rows = 0
        for key, function in list(self.functions.items()):
            if function.removed and function.changed_s < before_s:
                del self.functions[key]
                rows += 1 + len(self.entries.pop(key))
            elif surplus := self.entries[key][:-keep]:
                self.entries[key] = self.entries[key][-keep:]
                rows += len(surplus)
        named = {
            RevisionKey(key, each.name, each.fingerprint)
            for key, entries in self.entries.items()
            for entry in entries
            for each in entry.state.revisions
        }
        self.known = {key: spec for key, spec in self.known.items() if key in named}
        return rows
