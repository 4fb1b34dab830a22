"""The one seam where foreign database errors become ours.

Looked at in this order: SQLite's error code, PostgreSQL's SQLSTATE, then SQLAlchemy's class, whose meanings follow
PEP 249. What no request and no waiting can cure (a statement that does not compile) is a defect of ours and becomes a
plain CorralError.
"""

import sqlite3
from typing import Final

from sqlalchemy import exc

from corral.kernel.errors import Conflict, CorralError, DatabaseCorrupt, InvalidSpec, QuotaExceeded, StoreUnavailable

FOREIGN: Final = (
    exc.SQLAlchemyError,
    exc.EmulatedDBAPIException,  # asyncpg's errors, in SQLAlchemy's wrapping
    sqlite3.Error,
    OSError,
    TimeoutError,
    OverflowError,
    UnicodeError,
)
"""What a database call may raise besides errors of ours and of its caller."""

_RETRIED_SQLSTATES: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_TAKEN: Final = "the database already holds this, or holds what it contradicts"
_UNFIT: Final = "a value does not fit into the database: text with a NUL or a lone surrogate, or a number too large"
_FULL: Final = "the database cannot grow: its disk is full"
_FULL_CURE: Final = (
    "Free space on the disk of the data directory (or of PostgreSQL); nothing that was answered is lost."
)


def mapped(error: BaseException) -> CorralError:
    """Our error for a foreign one; ``error`` itself when it is ours already."""
    if isinstance(error, CorralError):
        return error
    original = error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error
    text = _one_line(original)
    wrapped = error if isinstance(error, exc.DBAPIError) else original  # else the driver was never reached
    return _by_sqlite_code(original, text) or _by_sqlstate(original, text) or _by_class(wrapped, text)


def is_retried(error: BaseException) -> bool:
    """True when PostgreSQL rolled the transaction back only because of others; the same one may be tried again."""
    return isinstance(error, exc.DBAPIError) and _sqlstate(error.orig) in _RETRIED_SQLSTATES


def _by_sqlite_code(error: BaseException, text: str) -> CorralError | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    match code & 0xFF:  # the primary code; the upper bytes refine it
        case sqlite3.SQLITE_FULL:
            return QuotaExceeded(_FULL, cure=_FULL_CURE, database=text)
        case sqlite3.SQLITE_CONSTRAINT:
            return _by_constraint(code in _SQLITE_RELATIONS, text)
        case sqlite3.SQLITE_TOOBIG:
            return InvalidSpec(_UNFIT, database=text)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseCorrupt(
                f"the database file is damaged: {text}",
                cure="Restore it from a backup; do not delete it.",
                database=text,
            )
        case sqlite3.SQLITE_ERROR | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_MISUSE | sqlite3.SQLITE_RANGE:
            return _defect(text)
    return _unavailable(text)


_SQLITE_RELATIONS: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
    }
)


def _by_sqlstate(error: BaseException, text: str) -> CorralError | None:  # classes: postgresql.org, appendix A
    state = _sqlstate(error)
    if state is None:
        return None
    if state == "53100":
        return QuotaExceeded(_FULL, cure=_FULL_CURE, database=text)
    if state.startswith("23"):
        return _by_constraint(state in ("23503", "23505", "23P01"), text)
    if state.startswith("22"):
        return InvalidSpec(_UNFIT, database=text)
    if state.startswith(("08", "25", "28", "3D", "40", "53", "54", "55", "57", "58", "F0", "XX")):
        return _unavailable(text)
    return _defect(text)


def _by_class(error: BaseException, text: str) -> CorralError:
    match error:
        case exc.IntegrityError():
            return Conflict(_TAKEN, database=text)
        case exc.DataError() | OverflowError() | UnicodeError() | sqlite3.DataError():
            return InvalidSpec(_UNFIT, database=text)
        case exc.ProgrammingError() | exc.NotSupportedError() | sqlite3.NotSupportedError():
            return _defect(text)
        case exc.DBAPIError() | exc.EmulatedDBAPIException() | exc.TimeoutError() | sqlite3.Error() | OSError():
            return _unavailable(text)
        case exc.DisconnectionError() | exc.ResourceClosedError() | exc.PendingRollbackError():
            return _unavailable(text)
    return _defect(text)


def _by_constraint(relation: bool, text: str) -> CorralError:
    """Unique and foreign keys are broken by racing callers; NOT NULL and CHECK only by us."""
    return Conflict(_TAKEN, database=text) if relation else _defect(text)


def _unavailable(text: str) -> StoreUnavailable:
    return StoreUnavailable(f"the database did not do it: {text}", database=text)


def _defect(text: str) -> CorralError:
    return CorralError(f"a defect of Corral: the database does not understand it: {text}", database=text)


def _sqlstate(error: BaseException | None) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
