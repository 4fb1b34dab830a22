"""The registry in the database; the same on SQLite and PostgreSQL, for any number of schedulers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.statements import insert_new
from corral.database.tables import function_history as history_table
from corral.database.tables import function_specs as specs_table
from corral.database.tables import functions as functions_table
from corral.functions.adapters.news import announce
from corral.functions.machine import Change, Function, FunctionState, HistoryEntry
from corral.functions.model import FunctionKey, RevisionKey, RevisionSpec
from corral.functions.ports import Decide

_KEYS_PER_QUERY: Final = 200
_decode_state: Final = msgspec.json.Decoder(FunctionState).decode
_decode_spec: Final = msgspec.json.Decoder(RevisionSpec).decode
_NO_STATE: Final = msgspec.json.encode(FunctionState())


class SqlFunctionStore:
    """See ``FunctionStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Sequence[Function]:
        query = (
            sa.select(functions_table)
            .where(functions_table.c.version > 0)
            .order_by(functions_table.c.tenant, functions_table.c.name)
        )

        async def find(connection: AsyncConnection) -> list[Function]:
            return [_function(row) for row in await connection.execute(query)]

        return await self._database.read(find)

    async def change(
        self, key: FunctionKey, decide: Decide, *, actor: str, specs: Mapping[RevisionKey, RevisionSpec]
    ) -> Change:
        async def decide_and_write(connection: AsyncConnection) -> Change:
            current = await _locked(connection, key)
            change = decide(current)
            if change.action:
                await _write(connection, change, actor, specs)
                await announce(connection)
            return change

        return await self._database.write(decide_and_write)

    async def specs(self, keys: Collection[RevisionKey]) -> Mapping[RevisionKey, RevisionSpec]:
        wanted = list(keys)

        async def find(connection: AsyncConnection) -> dict[RevisionKey, RevisionSpec]:
            found: dict[RevisionKey, RevisionSpec] = {}
            for at in range(0, len(wanted), _KEYS_PER_QUERY):
                chosen = [_is_spec(key) for key in wanted[at : at + _KEYS_PER_QUERY]]
                for row in await connection.execute(sa.select(specs_table).where(sa.or_(*chosen))):
                    found[_revision_key(row)] = _decode_spec(row.spec)
            return found

        return await self._database.read(find)

    async def history(self, key: FunctionKey, *, limit: int, before: int | None = None) -> Sequence[HistoryEntry]:
        table = history_table
        query = sa.select(table).where(table.c.tenant == key.tenant, table.c.function == key.name)
        if before is not None:
            query = query.where(table.c.version < before)
        query = query.order_by(table.c.version.desc()).limit(limit)

        async def find(connection: AsyncConnection) -> list[HistoryEntry]:
            return [_entry(row) for row in await connection.execute(query)]

        return await self._database.read(find)

    async def forget(self, *, before_s: float, keep: int) -> int:
        async def carry_out(connection: AsyncConnection) -> int:
            forgotten = await _forget_removed(connection, before_s) + await _forget_surplus(connection, keep)
            if forgotten:
                await _forget_specs(connection)
            return forgotten

        return await self._database.write(carry_out)


async def _locked(connection: AsyncConnection, key: FunctionKey) -> Function | None:
    """The function, with its row locked; None when it was never deployed (a row is made, so that it can be locked)."""
    first = {"tenant": key.tenant, "name": key.name, "version": 0, "removed": True, "changed_s": 0.0}
    await connection.execute(insert_new(connection, functions_table).values(**first, state=_NO_STATE))
    query = sa.select(functions_table).where(_is_function(key)).with_for_update()
    row = (await connection.execute(query)).one()
    return _function(row) if row.version else None


async def _write(
    connection: AsyncConnection, change: Change, actor: str, specs: Mapping[RevisionKey, RevisionSpec]
) -> None:
    entry = change.entry(actor)
    state = msgspec.json.encode(entry.state)
    values = {"version": entry.version, "removed": entry.removed, "changed_s": entry.at_s, "state": state}
    await connection.execute(functions_table.update().where(_is_function(entry.key)).values(**values))
    await connection.execute(
        history_table.insert().values(
            tenant=entry.key.tenant,
            function=entry.key.name,
            version=entry.version,
            at_s=entry.at_s,
            removed=entry.removed,
            actor=entry.actor,
            action=entry.action,
            text=entry.text,
            state=state,
        )
    )
    for key, spec in specs.items():
        await connection.execute(
            insert_new(connection, specs_table).values(
                tenant=key.function.tenant,
                function=key.function.name,
                revision=key.revision,
                fingerprint=key.fingerprint,
                created_s=entry.at_s,
                spec=msgspec.json.encode(spec),
            )
        )


async def _forget_removed(connection: AsyncConnection, before_s: float) -> int:
    old = sa.select(functions_table.c.tenant, functions_table.c.name).where(
        functions_table.c.removed, functions_table.c.changed_s < before_s
    )
    rows = 0
    for tenant, name in (await connection.execute(old)).all():
        key = FunctionKey(tenant, name)
        gone = await connection.execute(history_table.delete().where(_of_function(history_table, key)))
        rows += 1 + gone.rowcount
        await connection.execute(functions_table.delete().where(_is_function(key)))
    return rows


async def _forget_surplus(connection: AsyncConnection, keep: int) -> int:
    crowded = (
        sa.select(history_table.c.tenant, history_table.c.function)
        .group_by(history_table.c.tenant, history_table.c.function)
        .having(sa.func.count() > keep)
    )
    rows = 0
    for tenant, name in (await connection.execute(crowded)).all():
        chosen = _of_function(history_table, FunctionKey(tenant, name))
        versions = sa.select(history_table.c.version).where(chosen).order_by(history_table.c.version.desc())
        oldest = (await connection.execute(versions.offset(keep - 1).limit(1))).scalar_one()
        gone = await connection.execute(history_table.delete().where(chosen, history_table.c.version < oldest))
        rows += gone.rowcount
    return rows


async def _forget_specs(connection: AsyncConnection) -> None:
    """Specs are named inside of states, so what is named is collected first."""
    named: set[RevisionKey] = set()
    for row in await connection.execute(sa.select(history_table)):
        named.update(_named(_entry(row)))
    columns = [specs_table.c[name] for name in ("tenant", "function", "revision", "fingerprint")]
    for row in (await connection.execute(sa.select(*columns))).all():
        if (key := _revision_key(row)) not in named:
            await connection.execute(specs_table.delete().where(_is_spec(key)))


def _named(entry: HistoryEntry) -> Iterable[RevisionKey]:
    return [RevisionKey(entry.key, each.name, each.fingerprint) for each in entry.state.revisions]


def _is_function(key: FunctionKey) -> Any:
    return sa.and_(functions_table.c.tenant == key.tenant, functions_table.c.name == key.name)


def _of_function(table: sa.Table, key: FunctionKey) -> Any:
    return sa.and_(table.c.tenant == key.tenant, table.c.function == key.name)


def _is_spec(key: RevisionKey) -> Any:
    return sa.and_(
        _of_function(specs_table, key.function),
        specs_table.c.revision == key.revision,
        specs_table.c.fingerprint == key.fingerprint,
    )


def _revision_key(row: Any) -> RevisionKey:
    return RevisionKey(FunctionKey(row.tenant, row.function), row.revision, row.fingerprint)


def _function(row: Any) -> Function:
    return Function(
        key=FunctionKey(row.tenant, row.name),
        version=row.version,
        changed_s=row.changed_s,
        state=_decode_state(row.state),
        removed=row.removed,
    )


def _entry(row: Any) -> HistoryEntry:
    return HistoryEntry(
        key=FunctionKey(row.tenant, row.function),
        version=row.version,
        at_s=row.at_s,
        actor=row.actor,
        action=row.action,
        text=row.text,
        state=_decode_state(row.state),
        removed=row.removed,
    )
