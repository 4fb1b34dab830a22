"""The registry: every function in memory, every change through the store, one after another for each function."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from corral.functions import machine
from corral.functions.config import FunctionsConfig
from corral.functions.machine import Change, Command, Deploy, Function, HistoryEntry, RevisionEntry, Rollback
from corral.functions.model import FunctionKey, RevisionKey, RevisionPhase, RevisionSpec
from corral.functions.ports import FunctionStore
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import Conflict, NotFound, QuotaExceeded

HISTORY_PAGE: Final = 1000


class Registry:
    """See the module. ``load()`` first. ``on_change`` hears of every function that changed, and how it was before."""

    def __init__(self, store: FunctionStore, clock: Clock, config: FunctionsConfig) -> None:
        self._store = store
        self._clock = clock
        self._config = config
        self._functions: dict[FunctionKey, Function] = {}
        self._specs: dict[RevisionKey, RevisionSpec] = {}
        self._living: Counter[str] = Counter()
        self.changed = Signal()
        self.on_change: Callable[[Function | None, Function | None], None] = lambda before, after: None

    async def load(self) -> None:
        """Read everything. Raises StoreUnavailable."""
        await self.compare()

    async def compare(self) -> int:
        """Take over what other schedulers changed; how many functions."""
        stored = {function.key: function for function in await self._store.load()}
        newer = [each for each in stored.values() if self._version(each.key) < each.version]
        gone = [key for key in self._functions if key not in stored]
        await self._read_specs(key for each in newer for key in keys_of(each))
        for function in newer:
            self._take(function)
        for key in gone:
            self._let_go(key)
        if newer or gone:
            self.changed.notify()
        return len(newer) + len(gone)

    async def apply(
        self,
        key: FunctionKey,
        command: Command,
        *,
        actor: str,
        expected: int | None = None,
        spec: RevisionSpec | None = None,
    ) -> Change:
        """Carry out one command; durable before it returns.

        ``expected``: the version that the caller saw; another one there is a Conflict. ``spec`` belongs to a Deploy.
        Raises: what ``machine.step`` raises; QuotaExceeded for one function too many, or a full disk; StoreUnavailable.
        """
        now_s = self._clock.now_s()
        if isinstance(command, Rollback):
            await self._check_specs(command.to)
        if isinstance(command, Deploy):
            self._check_room(key)

        def decide(function: Function | None) -> Change:
            machine.expect_version(function, expected)
            return machine.step(function, key, command, now_s=now_s)

        specs: dict[RevisionKey, RevisionSpec] = {}
        if isinstance(command, Deploy) and spec is not None:
            specs[RevisionKey(key, command.revision, command.fingerprint)] = spec
        change = await self._store.change(key, decide, actor=actor, specs=specs)
        self._specs.update(specs)
        await self._read_specs(keys_of(change.function))
        if self._version(key) < change.function.version:
            self._take(change.function)
            self.changed.notify()
        return change

    def get(self, key: FunctionKey) -> Function:
        """Raises NotFound for one that is not deployed."""
        found = self._functions.get(key)
        if found is None or found.removed:
            raise NotFound(f'there is no function "{key.name[:70]}"', function=key.name[:70])
        return found

    def find(self, key: FunctionKey) -> Function | None:
        """The function, removed or not, if it was ever deployed."""
        return self._functions.get(key)

    def list(self, tenant: str | None = None) -> "list[Function]":
        """Those of a tenant, or all, by name; without removed ones."""
        chosen = (each for each in self._functions.values() if not each.removed and tenant in (None, each.key.tenant))
        return sorted(chosen, key=lambda each: each.key)

    def entry(self, key: RevisionKey) -> RevisionEntry | None:
        """The deployed revision with exactly this content."""
        function = self._functions.get(key.function)
        found = function.state.revision(key.revision) if function is not None else None
        return found if found is not None and found.fingerprint == key.fingerprint else None

    def active(self, key: RevisionKey) -> bool:
        """True when it may have instances."""
        found = self.entry(key)
        return found is not None and found.phase is RevisionPhase.ACTIVE and key in self._specs

    def spec(self, key: RevisionKey) -> RevisionSpec:
        """What was deployed. Raises NotFound."""
        if key not in self._specs:
            raise NotFound(f"there is no revision {key.revision} with this content", revision=key.revision)
        return self._specs[key]

    def specs(self) -> Mapping[RevisionKey, RevisionSpec]:
        """Of all deployed revisions (and of some that were)."""
        return self._specs

    async def history(self, key: FunctionKey, *, limit: int, before: int | None = None) -> Sequence[HistoryEntry]:
        """Newest first; of removed functions too. Raises NotFound for a function that never was."""
        if key not in self._functions:
            raise NotFound(f'there is no function "{key.name[:70]}"', function=key.name[:70])
        return await self._store.history(key, limit=min(limit, HISTORY_PAGE), before=before)

    async def history_entry(self, key: FunctionKey, version: int | None) -> HistoryEntry:
        """The change that made ``version``; None: the newest with another split than now. Raises NotFound."""
        if version is not None:
            found = await self.history(key, limit=1, before=version + 1)
            if found and found[0].version == version:
                return found[0]
            raise NotFound(f'the history of function "{key.name}" has no version {version}', version=version)
        function = self._functions.get(key)
        split = function.state.split if function is not None else ()
        before: int | None = None
        while page := await self.history(key, limit=100, before=before):
            if entry := machine.earlier_split(page, split):
                return entry
            before = page[-1].version
        raise Conflict(f'function "{key.name}" never had another split', cure="name a version of its history")

    async def forget(self) -> frozenset[FunctionKey]:
        """Let old history go; which functions are gone with it, for good."""
        before_s = self._clock.now_s() - self._config.forget_after_s
        if not await self._store.forget(before_s=before_s, keep=self._config.history_keep):
            return frozenset()
        known = frozenset(self._functions)
        await self.compare()
        return known - self._functions.keys()

    def _version(self, key: FunctionKey) -> int:
        function = self._functions.get(key)
        return function.version if function is not None else 0

    def _take(self, function: Function) -> None:
        before = self._functions.get(function.key)
        self._functions[function.key] = function
        self._living[function.key.tenant] += (not function.removed) - (before is not None and not before.removed)
        current = set(keys_of(function))
        for key in keys_of(before) if before is not None else ():
            if key not in current:
                self._specs.pop(key, None)
        self.on_change(before, function)

    def _let_go(self, key: FunctionKey) -> None:
        gone = self._functions.pop(key)
        self._living[key.tenant] -= not gone.removed
        for each in keys_of(gone):
            self._specs.pop(each, None)
        self.on_change(gone, None)

    async def _read_specs(self, keys: Iterable[RevisionKey]) -> None:
        missing = {key for key in keys if key not in self._specs}
        if missing:
            self._specs.update(await self._store.specs(missing))

    async def _check_specs(self, entry: HistoryEntry) -> None:
        wanted = {RevisionKey(entry.key, each.name, each.fingerprint) for each in entry.state.revisions}
        missing = wanted - set(await self._store.specs(wanted))
        if missing:
            names = ", ".join(sorted(key.revision for key in missing))
            raise Conflict(f"what was deployed as {names} is not remembered any more", cure="deploy it again")

    def _check_room(self, key: FunctionKey) -> None:
        known = self._functions.get(key)
        if (known is None or known.removed) and self._living[key.tenant] >= self._config.functions_max:
            raise QuotaExceeded(
                f"the tenant has {self._config.functions_max} functions already, the limit functions.functions_max",
                cure="remove one with `corral fn rm`",
            )


def keys_of(function: Function) -> "list[RevisionKey]":
    """The revisions that are deployed."""
    return [function.revision_key(each) for each in function.state.revisions]
