"""Fits the action service to what the REST door asks for: pure maps to the views that clients read."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from corral.actions.adapters.messages import read_result
from corral.actions.errors import MissingBlobs
from corral.actions.model import ActionResult, ExecutionUpdate, StoredResult
from corral.actions.service import ActionService
from corral.client.action_model import ActionProblem, ActionView, ExecutionView, OutputView, ResultView
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import CorralError, NotFound


class ActionDesk:
    """See ``doors.rest.services.ActionDesk``."""

    def __init__(self, service: ActionService) -> None:
        self._service = service

    async def execute(
        self, tenant: str, action: Digest, *, skip_cache_lookup: bool, priority: int, wait_s: float
    ) -> ExecutionView:
        """Begin it, or find its result; waits up to ``wait_s`` for the end."""
        updates = self._service.execute(tenant, action, skip_cache_lookup=skip_cache_lookup, priority=priority)
        return await _followed(updates, wait_s)

    async def wait(self, tenant: str, execution: str, *, wait_s: float) -> ExecutionView:
        """Where it stands, after up to ``wait_s`` of waiting for its end."""
        return await _followed(self._service.wait(tenant, execution), wait_s)

    async def cancel(self, tenant: str, execution: str) -> None:
        """End it."""
        await self._service.cancel(tenant, execution)

    async def show(self, tenant: str, action: Digest) -> ActionView:
        """What the digest is. Raises NotFound when neither the action nor a result is known."""
        cached = await self._service.cache.get(tenant, action)
        try:
            loaded, command = await self._service.load(tenant, action)
        except MissingBlobs:
            if cached is None:
                raise NotFound(f"there is no action {action}", cure="upload it, or look at its digest again") from None
            return _with_cached(ActionView(action=str(action), stored=False), cached, action.function)
        view = ActionView(
            action=str(action),
            arguments=command.arguments,
            environment=command.environment,
            working_directory=command.working_directory,
            outputs=command.outputs,
            platform=loaded.platform or command.platform,
            timeout_s=loaded.timeout_s,
            do_not_cache=loaded.do_not_cache,
            command=str(loaded.command),
            input_root=str(loaded.input_root),
        )
        return view if cached is None else _with_cached(view, cached, action.function)


async def _followed(updates: AsyncGenerator[ExecutionUpdate, None], wait_s: float) -> ExecutionView:
    async with aclosing(updates):
        last = await anext(updates)
        try:
            async with asyncio.timeout(wait_s):
                async for update in updates:
                    last = update
        except TimeoutError:
            pass  # it goes on; the caller comes back to it
    return execution_view(last)


def execution_view(update: ExecutionUpdate) -> ExecutionView:
    """A step of an execution as clients see it."""
    outcome = update.outcome
    if outcome is None:
        return ExecutionView(
            execution=update.execution, action=str(update.action), stage=update.stage.value, worker=update.worker
        )
    return ExecutionView(
        execution=update.execution,
        action=str(update.action),
        stage=update.stage.value,
        worker=update.worker,
        cached=outcome.cached,
        ended="" if outcome.result is None else outcome.ended.value,
        message=outcome.message,
        result=None if outcome.result is None else _result_view(outcome.result, update.action.function),
        problem=None if outcome.error is None else _problem(outcome.error),
    )


def _problem(error: Exception) -> ActionProblem:
    missing = tuple(str(digest) for digest in error.digests) if isinstance(error, MissingBlobs) else ()
    code = error.code if isinstance(error, CorralError) else CorralError.code
    return ActionProblem(code=code, message=str(error), missing=missing)


def _with_cached(view: ActionView, cached: StoredResult, function: HashFunction) -> ActionView:
    return msgspec.structs.replace(
        view,
        cached=_result_view(cached.encoded, function),
        stored_s=cached.stored_s,
        execution=cached.execution,
    )


def _result_view(encoded: bytes, function: HashFunction) -> ResultView:
    result = read_result(encoded, function)
    return ResultView(
        exit_code=result.exit_code,
        outputs=_outputs(result),
        stdout=_text(result.stdout_digest, result.stdout, function),
        stderr=_text(result.stderr_digest, result.stderr, function),
        worker=result.worker,
        times=result.times,
    )


def _outputs(result: ActionResult) -> tuple[OutputView, ...]:
    found = [
        OutputView(path=each.path, kind="file", digest=str(each.digest), executable=each.executable)
        for each in result.files
    ]
    found += [OutputView(path=each.path, kind="directory", digest=str(each.tree)) for each in result.directories]
    for links in (result.symlinks, result.file_symlinks, result.directory_symlinks):
        found += [OutputView(path=each.path, kind="symlink", target=each.target) for each in links]
    return tuple(sorted(found, key=lambda output: output.path))


def _text(digest: Digest | None, inline: bytes, function: HashFunction) -> str:
    if digest is not None:
        return str(digest)
    return str(Digest.of(inline, function)) if inline else ""
