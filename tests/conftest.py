"""Fixtures for tests that stand on a real database: every test gets a fresh, migrated one, on SQLite and PostgreSQL.

``CORRAL_TEST_POSTGRES_URL`` names a running PostgreSQL to use; otherwise a private server is started from the
binaries of Debian's ``postgresql`` package, below a temporary directory, on a unix socket only.
"""

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from corral.database.engine import Database
from corral.database.url import DatabaseUrl
from corral.database.version import migrate

POSTGRES_USER = "postgres"
TEMPLATE = f"corral_template_{os.getpid()}"
_numbers = itertools.count(1)


pytest.register_assert_rewrite("corral.testing")


def pytest_configure() -> None:
    """Keep pytest-asyncio from making a loop "that was there before" and never closing it."""
    asyncio.set_event_loop(None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server's URL; its user may create databases. Skips with the reason when there is none."""
    if configured := os.environ.get("CORRAL_TEST_POSTGRES_URL"):
        yield configured
        return
    directory = Path(tempfile.mkdtemp(prefix="corral-pg-", dir="/tmp"))
    try:
        server = _start_postgres(directory)
        try:
            yield f"postgresql://{POSTGRES_USER}@/postgres?host={directory}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "corral.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database to copy."""
    _administer(postgres_url, f"CREATE DATABASE {TEMPLATE}")
    asyncio.run(migrate(with_database(postgres_url, TEMPLATE)))
    yield TEMPLATE
    _administer(postgres_url, f"DROP DATABASE {TEMPLATE} WITH (FORCE)")


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    path = tmp_path / "corral.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    yield from _fresh_database(postgres_url, postgres_template)


@pytest.fixture(scope="module")
def module_postgres_database_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database for the tests of one file."""
    yield from _fresh_database(postgres_url, postgres_template)


def _fresh_database(postgres_url: str, postgres_template: str) -> Iterator[str]:
    name = f"corral_test_{os.getpid()}_{next(_numbers)}"
    _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield with_database(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of either kind."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_database_url"
    return str(request.getfixturevalue(name))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated, open database of either kind."""
    async with Database.open(database_url) as opened:
        yield opened


def with_database(url: str, name: str) -> str:
    """The same server's URL with another database."""
    head, _, tail = url.rpartition("/postgres")
    return f"{head}/{name}{tail}"


def _start_postgres(directory: Path) -> "subprocess.Popen[bytes]":
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not binaries:
        pytest.skip("no PostgreSQL: `apt-get install postgresql`, or set CORRAL_TEST_POSTGRES_URL")
    folder = binaries[-1].parent
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(directory, POSTGRES_USER, POSTGRES_USER)
        as_user = ["setpriv", f"--reuid={POSTGRES_USER}", f"--regid={POSTGRES_USER}", "--clear-groups"]
    data, log = directory / "data", directory / "log"
    initdb = [str(folder / "initdb"), f"--pgdata={data}", f"--username={POSTGRES_USER}", "--auth=trust"]
    initdb += ["--encoding=UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run([*as_user, *initdb], capture_output=True, check=False, timeout=60, cwd=directory)
    if made.returncode != 0:
        pytest.skip(f"PostgreSQL's initdb failed: {made.stderr.decode(errors='replace')[-500:]}")
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": directory,
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "shared_buffers": "32MB",
        "max_connections": "200",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "QUIT", *as_user[1:], str(folder / "postgres"), "-D", str(data), *options],
            stdout=output,
            stderr=output,
            cwd=directory,
        )
    _await_answer([folder / "pg_isready", "-q", "-h", directory, "-U", POSTGRES_USER], server, log)
    return server


def _await_answer(ask: list[str | Path], server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while subprocess.run(ask, check=False, timeout=10).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            server.wait(timeout=30)
            pytest.skip(f"PostgreSQL did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.05)


def _administer(url: str, statement: str) -> None:
    async def carry_out() -> None:
        engine = create_async_engine(DatabaseUrl.parse(url).url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.exec_driver_sql(statement)

    asyncio.run(carry_out())
