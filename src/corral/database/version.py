"""Which version of the schema a database has, and bringing it up to ours.

Alembic is needed only while a schema changes, so the long-lived processes never import it: :func:`migrate` runs
``python -m corral.database.migrate`` and reads its one line of answer.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, DatabaseCorrupt, InvalidSpec, StoreUnavailable, UnsupportedVersion

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision that this program knows, oldest first; a test compares it with the folder of migrations."""

_VERSION_TABLE: Final = "alembic_version"
_REAP_WITHIN_S: Final = 10.0


class MigrationAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child process says: ``code`` "" for done, else the code of an error."""

    code: str = ""
    message: str = ""
    cure: str = ""


async def check_version(database: Database) -> None:
    """Return when the database has exactly our schema.

    Raises:
        UnsupportedVersion: it is newer than this program, or must be upgraded first; the cure says how.
        StoreUnavailable: it does not answer.
    """
    revision = await database.read(read_revision)
    refuse_newer(revision, str(database.url))
    if revision != REVISIONS[-1]:
        was = f"is of version {revision}" if revision else "is empty"
        raise UnsupportedVersion(
            f"the database {database.url} {was} and must be upgraded to version {REVISIONS[-1]}",
            cure="`corral up` and `corral scheduler` upgrade it when they start; back it up first.",
            found=revision,
            needed=REVISIONS[-1],
        )


def refuse_newer(revision: str, where: str) -> None:
    """Raises UnsupportedVersion for a revision that this program has never heard of."""
    if revision and revision not in REVISIONS:
        raise UnsupportedVersion(
            f"the database {where} is of a newer version ({revision}) than this program ({REVISIONS[-1]})",
            cure="Install the newer Corral again, or point this one at another database; nothing was changed.",
            found=revision,
            needed=REVISIONS[-1],
        )


async def read_revision(connection: AsyncConnection) -> str:
    """The revision in the database; "" for an empty one."""
    return await connection.run_sync(_read_revision)


def _read_revision(connection: Connection) -> str:
    if not inspect(connection).has_table(_VERSION_TABLE):
        return ""
    return str(connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION_TABLE}").scalar() or "")


async def migrate(url: str, *, within_s: float = 3600.0) -> None:
    """Create or upgrade the schema at ``url``, in a child process and in one transaction; nothing when it is ours.

    Two that do it at once wait for one another. The URL may hold a password, so it goes through standard input.

    Raises:
        InvalidSpec: the URL is no database's.
        UnsupportedVersion: the database is newer than this program; nothing was changed.
        StoreUnavailable: it does not answer, or not within ``within_s``; nothing was changed.
    Cancellation: kills the child; the transaction is rolled back.
    """
    async with Database.open(url) as database:
        if await database.read(read_revision) == REVISIONS[-1]:
            return  # the usual restart: a child that imports Alembic would take longer than all the rest
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "corral.database.migrate",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            output, complaints = await child.communicate(url.encode())
    except TimeoutError as error:
        raise StoreUnavailable(
            f"upgrading the database took longer than {within_s:g} s; nothing was changed"
        ) from error
    finally:
        if child.returncode is None:
            child.kill()
            await finish(_reaped(child), within_s=_REAP_WITHIN_S)
    _raise_answer(output.splitlines(), complaints, child.returncode)


def _raise_answer(lines: Sequence[bytes], complaints: bytes, status: int | None) -> None:
    try:
        answer = msgspec.json.decode(lines[-1] if lines else b"", type=MigrationAnswer)
    except msgspec.DecodeError as error:
        last = complaints.decode(errors="replace").strip().splitlines()[-1:]
        raise CorralError(f"upgrading the database failed with status {status}: {' '.join(last)}") from error
    if not answer.code:
        return
    known = {each.code: each for each in (InvalidSpec, UnsupportedVersion, StoreUnavailable, DatabaseCorrupt)}
    raise known.get(answer.code, CorralError)(answer.message, cure=answer.cure)


async def _reaped(child: asyncio.subprocess.Process) -> None:
    await child.wait()
