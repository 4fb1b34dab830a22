"""Where a database is: ``sqlite:///data/corral.db`` or ``postgresql://user@host:5432/name``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from corral.kernel.errors import InvalidSpec

_FORMS: Final = 'write "sqlite:///path" (four slashes for an absolute path) or "postgresql://user@host/name"'
_SQLITE: Final = ("sqlite", "sqlite+aiosqlite")
_POSTGRES: Final = ("postgresql", "postgres", "postgresql+asyncpg")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A parsed database URL; as text it shows no password."""

    url: URL

    @classmethod
    def parse(cls, text: str) -> "DatabaseUrl":
        """Raises InvalidSpec when ``text`` names no SQLite file and no PostgreSQL database."""
        try:
            url = make_url(text)
        except (exc.ArgumentError, ValueError) as error:
            raise InvalidSpec(f"database: this is not a URL; {_FORMS}", field="database") from error
        if url.drivername in _SQLITE:
            if not url.database or url.database == ":memory:" or url.host or url.query:
                raise InvalidSpec(f"database: a SQLite URL names one file and nothing else; {_FORMS}", field="database")
            return cls(url.set(drivername="sqlite+aiosqlite"))
        if url.drivername in _POSTGRES:
            if not url.database:
                raise InvalidSpec(f"database: the PostgreSQL URL names no database; {_FORMS}", field="database")
            return cls(url.set(drivername="postgresql+asyncpg"))
        raise InvalidSpec(f'database: "{url.drivername}" is not supported; {_FORMS}', field="database")

    @property
    def is_sqlite(self) -> bool:
        """SQLite, or else PostgreSQL."""
        return self.url.drivername == "sqlite+aiosqlite"

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        return Path(self.url.database or "")

    @property
    def with_password(self) -> str:
        """The whole URL, for a child process of ours; never for a log."""
        return self.url.set(drivername="sqlite" if self.is_sqlite else "postgresql").render_as_string(False)

    def __str__(self) -> str:
        return self.url.set(drivername="sqlite" if self.is_sqlite else "postgresql").render_as_string(True)
