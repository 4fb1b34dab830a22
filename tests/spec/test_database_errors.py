"""Every foreign error has a place in our tree: the map is complete."""

import asyncio
import inspect
import pickle
import sqlite3
from collections.abc import Iterator

import asyncpg
import pytest
from sqlalchemy import exc

from corral.database.errors import FOREIGN, is_retried, mapped
from corral.database.limits import DatabaseLimits
from corral.database.url import DatabaseUrl
from corral.kernel.errors import (
    CallerError,
    Conflict,
    CorralError,
    DatabaseCorrupt,
    DependencyError,
    InvalidSpec,
    QuotaExceeded,
    StoreUnavailable,
)

EXPECTED = (Conflict, DatabaseCorrupt, InvalidSpec, QuotaExceeded, StoreUnavailable)


def errors_of(module: object) -> Iterator[type[Exception]]:
    for _, each in inspect.getmembers(module, inspect.isclass):
        if issubclass(each, Exception) and not issubclass(each, Warning) and each is not sqlite3.Warning:
            yield each


def wrapped(original: BaseException) -> exc.DBAPIError:
    """As SQLAlchemy hands it over."""
    return exc.DBAPIError("SELECT 1", {}, original)


SQLALCHEMY_DEFECTS = {  # these say that our own code is wrong
    "AmbiguousColumnError", "NoDBAPILoaded",
    "AmbiguousForeignKeysError", "ArgumentError", "AsyncContextAlreadyStarted", "AsyncContextNotStarted",
    "AwaitRequired", "CircularDependencyError", "CompileError", "ConstraintColumnNotFoundError", "DontWrapMixin",
    "DuplicateColumnError", "IdentifierError", "IllegalStateChangeError", "InvalidRequestError",
    "MissingGreenlet", "MultipleResultsFound", "NoForeignKeysError", "NoInspectionAvailable", "NoReferenceError",
    "NoReferencedColumnError", "NoReferencedTableError", "NoResultFound", "NoSuchColumnError", "NoSuchModuleError",
    "NoSuchTableError", "NotSupportedError", "ObjectNotExecutableError", "ProgrammingError", "SQLAlchemyError",
    "StatementError", "UnboundExecutionError", "UnreflectableTableError", "UnsupportedCompilationError",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(errors_of(exc)), ids=lambda kind: kind.__name__)
def test_every_error_of_sqlalchemy_has_a_place(kind: type[Exception]) -> None:
    error = kind.__new__(kind, "words")
    if isinstance(error, exc.StatementError):
        exc.StatementError.__init__(error, "words", "SELECT 1", {}, None)

    ours = mapped(error)

    assert isinstance(error, FOREIGN) or kind.__name__ == "DontWrapMixin"
    assert (type(ours) is CorralError) == (kind.__name__ in SQLALCHEMY_DEFECTS)
    assert type(ours) is CorralError or isinstance(ours, EXPECTED)


SQLITE_CODES = {name: getattr(sqlite3, name) for name in dir(sqlite3) if name.startswith("SQLITE_")}
SQLITE_PRIMARY = [
    "ERROR", "INTERNAL", "PERM", "ABORT", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT", "IOERR", "CORRUPT",
    "NOTFOUND", "FULL", "CANTOPEN", "PROTOCOL", "SCHEMA", "TOOBIG", "CONSTRAINT", "MISMATCH", "MISUSE", "AUTH",
    "FORMAT", "RANGE", "NOTADB",
]  # fmt: skip
SQLITE_DEFECTS = {"ERROR", "MISMATCH", "MISUSE", "RANGE", "CONSTRAINT"}


@pytest.mark.parametrize("name", SQLITE_PRIMARY)
def test_every_code_of_sqlite_has_a_place(name: str) -> None:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = SQLITE_CODES[f"SQLITE_{name}"]

    ours = mapped(wrapped(error))

    assert (type(ours) is CorralError) == (name in SQLITE_DEFECTS)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Conflict),
        (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, Conflict),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, Conflict),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, CorralError),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, CorralError),
        (sqlite3.SQLITE_FULL, QuotaExceeded),
        (sqlite3.SQLITE_TOOBIG, InvalidSpec),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreUnavailable),
        (sqlite3.SQLITE_IOERR_WRITE, StoreUnavailable),
    ],
)
def test_what_sqlite_means(code: int, kind: type[CorralError]) -> None:
    error = sqlite3.IntegrityError("words")
    error.sqlite_errorcode = code

    assert type(mapped(wrapped(error))) is kind


@pytest.mark.parametrize("kind", list(errors_of(sqlite3)), ids=lambda kind: kind.__name__)
def test_every_error_of_sqlite_without_a_code_has_a_place(kind: type[Exception]) -> None:
    assert isinstance(kind("words"), FOREIGN)
    assert isinstance(mapped(kind("words")), CorralError)


POSTGRES_ERRORS = [kind for kind in errors_of(asyncpg.exceptions) if getattr(kind, "sqlstate", None)]
POSTGRES_DEFECT_CLASSES = (
    "03", "09", "10", "0A", "0B", "0F", "0L", "0P", "0Z", "20", "21", "24", "26", "27", "2B", "2D", "2F", "34",
    "38", "39", "3B", "3F", "42", "44", "HV", "P0", "00", "01", "02", "72",
)  # fmt: skip


@pytest.mark.parametrize("kind", POSTGRES_ERRORS, ids=lambda kind: f"{kind.sqlstate}-{kind.__name__}")
def test_every_state_of_postgresql_has_a_place(kind: type[Exception]) -> None:
    state = str(vars(kind).get("sqlstate") or getattr(kind, "sqlstate", ""))

    ours = mapped(wrapped(kind("words")))

    if state.startswith("23"):
        assert (type(ours) is Conflict) == (state in ("23503", "23505", "23P01"))
    elif state.startswith("22"):
        assert type(ours) is InvalidSpec
    elif state == "53100":
        assert type(ours) is QuotaExceeded
    elif state[:2] in POSTGRES_DEFECT_CLASSES:
        assert type(ours) is CorralError
    else:
        assert type(ours) is StoreUnavailable


def test_there_is_something_to_walk() -> None:
    assert len(POSTGRES_ERRORS) > 200
    assert len(list(errors_of(exc))) > 40


def test_only_what_others_caused_is_tried_again() -> None:
    retried = [kind for kind in POSTGRES_ERRORS if is_retried(wrapped(kind("words")))]

    assert {kind.__name__ for kind in retried} == {"SerializationError", "DeadlockDetectedError"}
    assert not is_retried(ConnectionResetError())


@pytest.mark.parametrize("error", [ConnectionRefusedError("no"), TimeoutError(), OSError(5, "no"), exc.TimeoutError()])
def test_a_network_that_fails_is_a_dependency_that_fails(error: Exception) -> None:
    assert isinstance(error, FOREIGN)
    assert isinstance(mapped(error), DependencyError)


def test_our_own_errors_pass_unchanged() -> None:
    ours = Conflict("ours")

    assert mapped(ours) is ours


def test_the_message_is_one_line_and_bounded() -> None:
    ours = mapped(wrapped(sqlite3.OperationalError("first\nsecond" + "x" * 10_000)))

    assert "second" not in ours.message and len(ours.message) < 500


def test_statement_parameters_never_reach_the_message() -> None:
    ours = mapped(exc.DBAPIError("INSERT", {"token": "hunter2"}, sqlite3.OperationalError("disk I/O error")))

    assert "hunter2" not in repr(ours) + repr(ours.context)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:///corral.db", "sqlite:///corral.db"),
        ("sqlite:////var/lib/corral.db", "sqlite:////var/lib/corral.db"),
        ("postgresql://me@host:5432/name", "postgresql://me@host:5432/name"),
        ("postgres://me:hunter2@host/name", "postgresql://me:***@host/name"),
        ("postgresql+asyncpg://me@/name?host=/run", "postgresql://me@/name?host=%2Frun"),
    ],
)
def test_a_database_url_shows_no_password(text: str, shown: str) -> None:
    assert str(DatabaseUrl.parse(text)) == shown
    assert DatabaseUrl.parse(DatabaseUrl.parse(text).with_password) == DatabaseUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "corral.db", "sqlite://", "sqlite:///:memory:", "sqlite://host/x", "sqlite:///x?mode=ro", "mysql://h/x",
     "postgresql://host", "postgresql://host:port/x", "://"],
)  # fmt: skip
def test_another_url_is_the_callers_mistake_that_tells_the_right_form(text: str) -> None:
    with pytest.raises(InvalidSpec, match="write "):
        DatabaseUrl.parse(text)


def test_a_mistaken_url_does_not_show_its_password() -> None:
    with pytest.raises(CallerError) as refused:
        DatabaseUrl.parse("mysql://me:hunter2@host/x")

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("limits", [{"readers": 0}, {"batch": -1}, {"write_timeout_s": 0}, {"busy_timeout_s": 1e9}])
def test_absurd_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        DatabaseLimits(**limits)  # type: ignore[arg-type] # the very mistake


def test_cancellation_is_never_mapped() -> None:
    assert not issubclass(asyncio.CancelledError, FOREIGN)


def test_our_errors_can_leave_a_process() -> None:
    assert pickle.loads(pickle.dumps(mapped(OSError(5, "no")))).args
