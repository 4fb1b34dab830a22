"""What the shell proposes for an id: those that there are just now, and nothing when no scheduler answers at once."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import typer

from corral.kernel.errors import CorralError

_WITHIN_S: Final = 1.0
_TASKS: Final = 50

Proposals = list[tuple[str, str]]


def task_ids(context: typer.Context, incomplete: str) -> Proposals:
    """Of the newest tasks, each with its phase and name."""

    async def ask(corral: Any) -> Proposals:
        page = await corral.tasks.page(limit=_TASKS)
        return [(task.id, f"{task.phase.value} {task.name}".strip()) for task in page.tasks]

    return _beginning_with(incomplete, context, ask)


def worker_ids(context: typer.Context, incomplete: str) -> Proposals:
    """Each with its state."""

    async def ask(corral: Any) -> Proposals:
        return [(worker.id, worker.state) for worker in await corral.workers.list()]

    return _beginning_with(incomplete, context, ask)


def _beginning_with(incomplete: str, context: typer.Context, ask: Callable[[Any], Awaitable[Proposals]]) -> Proposals:
    async def asked() -> Proposals:
        from corral.client import Corral  # noqa: PLC0415 (only the shell's tab key pays for it)

        async with Corral(str(context.params.get("url") or ""), timeout_s=_WITHIN_S) as corral:
            return await ask(corral)

    with suppress(CorralError):  # a proposal is no place for a complaint: the command itself will say it
        return [each for each in asyncio.run(asked()) if each[0].startswith(incomplete)]
    return []
