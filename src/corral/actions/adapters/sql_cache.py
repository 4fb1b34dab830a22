"""The action cache in the database, over the store that holds what its results name; SQLite and PostgreSQL alike."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.actions.adapters.messages import blobs_of_result, blobs_of_tree, read_result, read_tree
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionLimits
from corral.actions.model import ActionResult, StoredResult
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobReader
from corral.database.batch import execute_batches
from corral.database.engine import Database
from corral.database.query import Query
from corral.database.statements import many_or_update
from corral.database.tables import action_results as table
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, TooLarge
from corral.kernel.units import format_size
from corral.sandboxes.model import MIB

_TREE_BYTES_MAX: Final = 64 * MIB
_USED_EVERY_S: Final = 3600.0
_DELETE_ROWS: Final = 1000
_FIND: Final = Query(
    sa.select(table.c.encoded, table.c.named, table.c.stored_s, table.c.used_s, table.c.execution).where(
        table.c.tenant == sa.bindparam("tenant"), table.c.action == sa.bindparam("action")
    )
)
_STORE: Final = many_or_update(table)
_decode_names: Final = msgspec.json.Decoder(list[str]).decode


class SqlActionCache:
    """See ``ports.ActionCache``; ``clean`` keeps it within its bounds."""

    def __init__(self, database: Database, blobs: BlobReader, clock: Clock, limits: ActionLimits | None = None) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._limits = limits or ActionLimits()

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        values = {"tenant": tenant, "action": str(action)}
        rows: Sequence[Any] = await self._database.read(lambda connection: _FIND.rows(connection, values))
        if not rows:
            return None
        encoded, names, stored_s, used_s, execution = rows[0]
        named = tuple(Digest.parse(name) for name in _decode_names(names))
        if await missing_of(self._blobs, tenant, named):
            await self.remove(tenant, action)
            return None
        now_s = self._clock.now_s()
        if now_s - used_s > _USED_EVERY_S:
            statement = table.update().where(*_key(tenant, action)).values(used_s=now_s)
            await self._database.write(lambda connection: connection.execute(statement))
        return StoredResult(encoded=bytes(encoded), named=named, stored_s=stored_s, execution=execution)

    async def update(self, tenant: str, action: Digest, result: StoredResult) -> None:
        if len(result.encoded) > self._limits.result_bytes:
            raise TooLarge(
                f"the result has {format_size(len(result.encoded))}; the action cache takes "
                f"{format_size(self._limits.result_bytes)} (actions.result_bytes)",
                limit="result_bytes",
            )
        named = await self._all_named(tenant, action, result)
        whole = replace(result, named=named)
        now_s = self._clock.now_s()
        await self._database.write(lambda connection: store(connection, tenant, action, whole, now_s=now_s))

    async def remove(self, tenant: str, action: Digest) -> None:
        statement = table.delete().where(*_key(tenant, action))
        await self._database.write(lambda connection: connection.execute(statement))

    async def clean(self, *, now_s: float) -> int:
        """Forget what nobody asked for during ``result_age_s``, then the oldest beyond ``results``; how many."""
        before_s = now_s - self._limits.result_age_s

        async def some(connection: AsyncConnection) -> int:
            kept = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            oldest = sa.select(table.c.tenant, table.c.action, table.c.used_s).order_by(table.c.used_s)
            rows = (await connection.execute(oldest.limit(_DELETE_ROWS))).all()
            gone = [
                row for place, row in enumerate(rows) if row.used_s < before_s or kept - place > self._limits.results
            ]
            for row in gone:
                await connection.execute(
                    table.delete().where(table.c.tenant == row.tenant, table.c.action == row.action)
                )
            return len(gone)

        total = 0
        while gone := await self._database.write(some):
            total += gone
            if gone < _DELETE_ROWS:
                break
        return total

    async def _all_named(self, tenant: str, action: Digest, stored: StoredResult) -> tuple[Digest, ...]:
        """Every blob that must be there for a hit. Raises as ``update``."""
        result = read_result(stored.encoded, action.function)
        if result.exit_code != 0:
            raise InvalidSpec(
                f"exit_code: the action failed with {result.exit_code}; only results of success are cached",
                field="exit_code",
            )
        own = blobs_of_result(result)
        named = dict.fromkeys((*own, *stored.named))
        if not stored.named:
            named.update(dict.fromkeys(await self._in_trees(tenant, result)))
        if missing := await missing_of(self._blobs, tenant, named):
            raise MissingBlobs(missing, "the result names")
        return tuple(named)

    async def _in_trees(self, tenant: str, result: ActionResult) -> list[Digest]:
        found: list[Digest] = []
        for directory in result.directories:
            try:
                data = await read_bytes(self._blobs, tenant, directory.tree, bytes_max=_TREE_BYTES_MAX)
            except NotFound:
                raise MissingBlobs([directory.tree], "the result names") from None
            tree = read_tree(data, directory.tree.function)
            found += blobs_of_tree(tree, as_blobs=directory.root is not None)
        return found


async def store(
    connection: AsyncConnection, tenant: str, action: Digest, result: StoredResult, *, now_s: float
) -> None:
    """Write a result whose names are complete, in the caller's transaction; nothing is checked."""
    row = {
        "tenant": tenant,
        "action": str(action),
        "stored_s": result.stored_s,
        "used_s": now_s,
        "execution": result.execution,
        "encoded": result.encoded,
        "named": msgspec.json.encode([str(digest) for digest in result.named]),
    }
    await execute_batches(connection, [(_STORE[connection.dialect.name], [row])])


async def missing_of(blobs: BlobReader, tenant: str, named: Iterable[Digest]) -> frozenset[Digest]:
    """Which are not stored; the others are marked as used. The empty blob need not be stored."""
    wanted = [digest for digest in named if digest.size_bytes]
    return await blobs.find_missing(tenant, wanted) if wanted else frozenset()


def _key(tenant: str, action: Digest) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.tenant == tenant, table.c.action == str(action)
