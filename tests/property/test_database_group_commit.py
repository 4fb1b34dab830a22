"""Whatever writes come together, exactly those that did not fail are kept, in the order in which they came."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.limits import DatabaseLimits
from corral.database.tables import idempotency_keys
from corral.kernel.errors import Conflict


@dataclass(frozen=True)
class Step:
    """One write: the keys that it adds, whether it then fails, and how often the loop turns before the next one."""

    keys: tuple[str, ...]
    fails: bool
    turns: int


steps = st.builds(
    Step,
    keys=st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True).map(tuple),
    fails=st.booleans(),
    turns=st.integers(0, 5),
)


def expected(history: list[Step]) -> tuple[set[str], list[str]]:
    """A model of one line: each write all or nothing, a taken key is a conflict."""
    kept: set[str] = set()
    outcomes = []
    for step in history:
        if kept & set(step.keys):
            outcomes.append("Conflict")
        elif step.fails:
            outcomes.append("KeyError")
        else:
            outcomes.append("written")
            kept |= set(step.keys)
    return kept, outcomes


async def carry_out(url: str, history: list[Step], batch: int) -> tuple[set[str], list[str]]:
    async def one(step: Step) -> str:
        async def write(connection: AsyncConnection) -> None:
            for key in step.keys:
                await connection.execute(insert(idempotency_keys), row(key))
            if step.fails:
                raise KeyError

        try:
            await database.write(write)
        except (Conflict, KeyError) as error:
            return type(error).__name__
        return "written"

    async with Database.open(url, DatabaseLimits(batch=batch)) as database:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for step in history:
                tasks.append(group.create_task(one(step)))
                for _ in range(step.turns):
                    await asyncio.sleep(0)
        found = await database.read(lambda connection: connection.execute(select(idempotency_keys.c.key)))
        return set(found.scalars()), [task.result() for task in tasks]


def row(key: str) -> dict[str, Any]:
    return {"tenant": "acme", "key": key, "request": "", "task_ids": b"[]", "created_s": 1.0}


@given(history=st.lists(steps, max_size=12), batch=st.integers(1, 6))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_each_write_is_all_or_nothing_whatever_its_neighbours_do(
    sqlite_template: Path, history: list[Step], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "corral.db"
        shutil.copyfile(sqlite_template, path)

        assert asyncio.run(carry_out(f"sqlite:///{path}", history, batch)) == expected(history)
