"""Calls one hook of all plugins of a run: side by side, each isolated from the others and bounded in time."""

import asyncio
import inspect
from collections.abc import Awaitable, Iterable
from typing import Any, Final

from corral.kernel.errors import CorralError
from corral.kernel.units import format_duration
from corral.tasks.plugin import HOOKS, TaskPlugin

HOOK_WITHIN_S: Final = 30 * 60.0


class HookOverdue(Exception):
    """A hook took longer than it may; it was cancelled."""


class HooksFailed(Exception):
    """At least one hook of a stage failed; ``errors`` holds all of them. The others ran to their end."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__(f"{len(errors)} hooks failed: {errors[0]}")
        self.errors = errors


class TaskPlugins:
    """The plugins that take part in one run."""

    def __init__(self, members: Iterable[tuple[str, TaskPlugin]], *, within_s: float = HOOK_WITHIN_S) -> None:
        self._within_s = within_s
        members = tuple(members)
        self._by_hook = {
            hook: tuple((name, plugin) for name, plugin in members if hook in plugin.overridden) for hook in HOOKS
        }

    def has(self, hook: str) -> bool:
        """True when some plugin has this hook."""
        return bool(self._by_hook[hook])

    @property
    def take_out(self) -> bool:
        """True when some plugin may look into the sandbox after the command."""
        return any(plugin.takes_out for _, plugin in self._by_hook["stopped"])

    async def call(self, hook: str, *arguments: Any) -> list[Any]:
        """What the hooks returned. Raises HooksFailed when all have ended and some failed.

        Cancellation: cancels the hooks that wait, and waits for them.
        """
        results: list[Any] = []
        errors: list[Exception] = []
        waiting: list[tuple[str, Awaitable[Any]]] = []
        for name, plugin in self._by_hook[hook]:
            try:
                result = getattr(plugin, hook)(*arguments)
            except Exception as error:  # noqa: BLE001 (hook boundary: one plugin's failure never stops another's hook)
                errors.append(error)
                continue
            if inspect.isawaitable(result):
                waiting.append((name, result))
            else:
                results.append(result)
        if len(waiting) == 1:
            await self._bounded(hook, *waiting[0], results, errors)
        elif waiting:
            async with asyncio.TaskGroup() as group:
                for name, awaitable in waiting:
                    group.create_task(self._bounded(hook, name, awaitable, results, errors), name=f"{name}.{hook}")
        if errors:
            raise HooksFailed(errors)
        return results

    async def _bounded(
        self, hook: str, name: str, waiting: Awaitable[Any], results: list[Any], errors: list[Exception]
    ) -> None:
        try:
            async with asyncio.timeout(self._within_s) as scope:
                results.append(await waiting)
        except TimeoutError as error:
            if not scope.expired():
                errors.append(error)
                return
            errors.append(HookOverdue(f"plugin {name}: {hook} took longer than {format_duration(self._within_s)}"))
        except HooksFailed as failed:
            errors += failed.errors
        except CorralError as error:
            errors.append(error)
        except Exception as error:  # noqa: BLE001 (hook boundary)
            error.add_note(f"in plugin {name}, hook {hook}")
            errors.append(error)
