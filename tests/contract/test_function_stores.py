"""The contract of registries of functions: in memory, on SQLite and on PostgreSQL; and two schedulers over one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.functions import machine
from corral.functions.adapters.homes import MemoryHomeStore, SqlHomeStore
from corral.functions.adapters.memory import MemoryFunctionStore
from corral.functions.adapters.news import SqlNews
from corral.functions.adapters.sql import SqlFunctionStore
from corral.functions.config import FunctionsConfig
from corral.functions.homes import Home, HomeStore, Settled
from corral.functions.machine import Change, Command, Function
from corral.functions.model import FunctionKey, Kind, RevisionKey, RevisionSpec, Scale, fingerprint
from corral.functions.ports import FunctionStore
from corral.functions.registry import Registry
from corral.functions.routing import Backend
from corral.kernel.clock import SystemClock
from corral.kernel.errors import Conflict, NotFound, QuotaExceeded

HELLO = FunctionKey("default", "hello")
CLOCK = SystemClock()


@pytest.fixture(params=["memory", "sqlite_url", "postgres_database_url"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "memory" else str(request.getfixturevalue(request.param))


@pytest.fixture
async def store(url: str) -> AsyncIterator[FunctionStore]:
    if not url:
        yield MemoryFunctionStore()
        return
    async with Database.open(url) as database:
        yield SqlFunctionStore(database)


def a_spec(text: str) -> RevisionSpec:
    return RevisionSpec(module="b3:" + "0" * 64 + "-8", kind=Kind.WASI_COMMAND, env={"ключ": text})


async def do(
    store: FunctionStore, command: Command, *, key: FunctionKey = HELLO, now_s: float = 100.5, spec: str = ""
) -> Change:
    def decide(function: Function | None) -> Change:
        return machine.step(function, key, command, now_s=now_s)

    specs = {}
    if isinstance(command, machine.Deploy):
        specs[RevisionKey(key, command.revision, command.fingerprint)] = a_spec(spec or command.revision)
    return await store.change(key, decide, actor="ann ☃", specs=specs)


def deploy(name: str, **values: object) -> machine.Deploy:
    return machine.Deploy(name, fingerprint(a_spec(name)), **values)  # type: ignore[arg-type]


async def test_what_was_deployed_comes_back_whole(store: FunctionStore) -> None:
    change = await do(store, deploy("v1", scale=Scale(min=1, target=2.5)))

    assert list(await store.load()) == [change.function]
    key = RevisionKey(HELLO, "v1", fingerprint(a_spec("v1")))
    assert await store.specs([key, RevisionKey(HELLO, "v1", "other")]) == {key: a_spec("v1")}


async def test_functions_are_listed_by_tenant_and_name_and_never_mixed_up(store: FunctionStore) -> None:
    for tenant, name in (("b", "a"), ("a", "b-c"), ("a", "b"), ("a-b", "c")):
        await do(store, deploy("v1"), key=FunctionKey(tenant, name))

    assert [str(each.key) for each in await store.load()] == ["a/b", "a/b-c", "a-b/c", "b/a"]


async def test_what_raises_changes_nothing_and_leaves_nothing(store: FunctionStore) -> None:
    with pytest.raises(NotFound):
        await do(store, machine.SwitchOn("v1"))
    await do(store, deploy("v1"))
    with pytest.raises(Conflict):
        await do(store, machine.Deploy("v1", "another"))

    assert [each.version for each in await store.load()] == [1]
    assert len(await store.history(HELLO, limit=10)) == 1


async def test_what_changes_nothing_is_not_remembered(store: FunctionStore) -> None:
    await do(store, deploy("v1"))

    again = await do(store, deploy("v1"))

    assert again.action == ""
    assert len(await store.history(HELLO, limit=10)) == 1


async def test_the_history_is_complete_newest_first_and_comes_in_pages(store: FunctionStore) -> None:
    changes = [await do(store, deploy(f"v{number}", default=True), now_s=float(number)) for number in range(1, 6)]

    whole = await store.history(HELLO, limit=10)
    page = await store.history(HELLO, limit=2, before=4)

    assert [each.version for each in whole] == [5, 4, 3, 2, 1]
    assert [each.state for each in whole] == [each.function.state for each in reversed(changes)]
    assert {(each.actor, each.action) for each in whole} == {("ann ☃", "revision-deployed")}
    assert [each.version for each in page] == [3, 2]


async def test_changes_at_once_follow_one_another(store: FunctionStore) -> None:
    await do(store, deploy("v1"))
    async with asyncio.TaskGroup() as group:
        for number in range(2, 12):
            group.create_task(do(store, deploy(f"v{number}", default=True)))

    (function,) = await store.load()
    history = await store.history(HELLO, limit=20)
    assert function.version == 11
    assert len(function.state.revisions) == 11
    assert [each.version for each in history] == list(range(11, 0, -1))


async def test_two_that_deploy_a_new_function_at_once_do_not_lose_one_another(store: FunctionStore) -> None:
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(do(store, deploy(name))) for name in ("v1", "v2")]

    (function,) = await store.load()
    assert {each.name for each in function.state.revisions} == {"v1", "v2"}
    assert function.state.default in ("v1", "v2")
    assert sorted(each.result().function.version for each in both) == [1, 2]


async def test_old_history_and_removed_functions_are_forgotten_with_specs_that_nobody_names(
    store: FunctionStore,
) -> None:
    other = FunctionKey("default", "other")
    for name in ("v1", "v2", "v3", "v4"):
        await do(store, deploy(name, revisions_max=3, default=True))
    await do(store, deploy("v1"), key=other, now_s=1.0)
    await do(store, machine.Remove(), key=other, now_s=2.0)

    rows = await store.forget(before_s=50.0, keep=1)

    assert rows == 3 + 3
    assert [each.key for each in await store.load()] == [HELLO]
    assert [each.version for each in await store.history(HELLO, limit=10)] == [4]
    asked = [RevisionKey(HELLO, name, fingerprint(a_spec(name))) for name in ("v1", "v2", "v3", "v4")]
    kept = {key.revision for key in await store.specs(asked)}
    assert kept == {"v2", "v3", "v4"}
    assert await store.forget(before_s=50.0, keep=1) == 0


async def test_two_schedulers_over_one_registry_learn_from_each_other(store: FunctionStore) -> None:
    here, there = Registry(store, CLOCK, FunctionsConfig()), Registry(store, CLOCK, FunctionsConfig())
    await here.load()
    await there.load()
    await here.apply(HELLO, deploy("v1"), actor="ann", spec=a_spec("v1"))
    with pytest.raises(NotFound):
        there.get(HELLO)

    learned = await there.compare()

    assert learned == 1
    assert there.get(HELLO) == here.get(HELLO)
    assert there.active(RevisionKey(HELLO, "v1", fingerprint(a_spec("v1"))))
    await there.apply(HELLO, deploy("v2", default=True), actor="bob", spec=a_spec("v2"))
    await here.compare()
    assert here.get(HELLO).state.default == "v2"
    assert await here.compare() == 0


async def test_a_tenant_has_so_many_functions_and_no_more(store: FunctionStore) -> None:
    registry = Registry(store, CLOCK, FunctionsConfig(functions_max=2))
    await registry.load()
    for name in ("a", "b"):
        await registry.apply(FunctionKey("default", name), deploy("v1"), actor="ann", spec=a_spec("v1"))

    with pytest.raises(QuotaExceeded, match="functions_max"):
        await registry.apply(FunctionKey("default", "c"), deploy("v1"), actor="ann", spec=a_spec("v1"))

    await registry.apply(FunctionKey("other", "c"), deploy("v1"), actor="ann", spec=a_spec("v1"))
    await registry.apply(FunctionKey("default", "a"), machine.Remove(), actor="ann")
    await registry.apply(FunctionKey("default", "c"), deploy("v1"), actor="ann", spec=a_spec("v1"))
    assert [each.key.name for each in registry.list("default")] == ["b", "c"]


async def test_a_rollback_to_what_is_not_remembered_any_more_is_a_conflict(store: FunctionStore) -> None:
    registry = Registry(store, CLOCK, FunctionsConfig(history_keep=1))
    await registry.load()
    await registry.apply(HELLO, deploy("v1"), actor="ann", spec=a_spec("v1"))
    first = await registry.history_entry(HELLO, 1)
    await registry.apply(HELLO, deploy("v2", default=True), actor="ann", spec=a_spec("v2"))
    await registry.apply(HELLO, machine.RemoveRevision("v1"), actor="ann")
    await registry.forget()

    with pytest.raises(NotFound, match="no version 1"):
        await registry.history_entry(HELLO, 1)
    with pytest.raises(Conflict, match="v1"):
        await registry.apply(HELLO, machine.Rollback(first), actor="ann")


@pytest.fixture
async def homes(url: str) -> AsyncIterator[HomeStore]:
    if not url:
        yield MemoryHomeStore()
        return
    async with Database.open(url) as database:
        yield SqlHomeStore(database)


async def test_what_a_scheduler_publishes_replaces_what_it_published_and_leaves_with_it(homes: HomeStore) -> None:
    backend = Backend(instance="fni_1", worker="wrk_a", address="unix:x@10.0.0.1:7080")
    key = RevisionKey(HELLO, "v1", "0" * 16)
    for home in (
        Home(scheduler="b", beat=1),
        Home(scheduler="a", beat=1),
        Home(scheduler="a", beat=2, instances=(Settled(key=key, backend=backend),)),
    ):
        await homes.publish(home, changed=True)

    found = {each.scheduler: each for each in await homes.homes()}
    assert (found["a"].beat, found["a"].instances[0].backend, found["b"].instances) == (2, backend, ())

    await homes.leave(["a", "absent"])

    assert [each.scheduler for each in await homes.homes()] == ["b"]


class Listener:
    """Listens for news of functions; ``news`` is set at each."""

    def __init__(self, database: Database) -> None:
        self.news = asyncio.Event()
        self._database = database

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Listener"]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(SqlNews(self._database).listen(self.news.set))
            await self.heard()  # it is connected
            yield self
            task.cancel()

    async def heard(self) -> None:
        async with asyncio.timeout(20):
            await self.news.wait()
        self.news.clear()


@pytest.fixture
async def both(postgres_database_url: str) -> AsyncIterator[tuple[Database, Listener]]:
    """One who writes and one who listens, each with connections of its own."""
    async with Database.open(postgres_database_url) as writing, Database.open(postgres_database_url) as reading:
        async with Listener(reading).listening() as listener:
            yield writing, listener


async def test_a_change_is_told_to_all_who_listen(both: tuple[Database, Listener]) -> None:
    writing, listener = both

    await do(SqlFunctionStore(writing), deploy("v1"))

    await listener.heard()


async def test_a_change_that_was_refused_is_not_told(both: tuple[Database, Listener]) -> None:
    writing, listener = both
    store, homes = SqlFunctionStore(writing), SqlHomeStore(writing)

    with pytest.raises(NotFound):
        await do(store, machine.SwitchOn("v1"))
    await homes.publish(Home(scheduler="a", beat=1), changed=False)
    assert not listener.news.is_set()
    await homes.publish(Home(scheduler="a", beat=2), changed=True)

    await listener.heard()
    await homes.leave(["a"])
    await listener.heard()


async def test_whoever_listens_hears_again_after_its_connection_was_lost(both: tuple[Database, Listener]) -> None:
    writing, listener = both

    async def cut(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN %'"
        )

    await writing.read(cut)

    await listener.heard()  # it is connected again, and something may have been missed
    await do(SqlFunctionStore(writing), deploy("v1"))
    await listener.heard()
