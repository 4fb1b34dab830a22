"""One action on a worker: fetch its inputs, lease a sandbox, stage, run, collect. Callable with and without the queue.

The sandbox is leased after the inputs are here and given back before the result is told, so that a slow store holds no
sandbox.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from corral.actions.adapters.messages import read_action, read_command
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionWorkerConfig
from corral.actions.machine import (
    Platform,
    check_command,
    ended_as,
    parents_of,
    properties_of,
    read_platform,
    size_mistakes,
)
from corral.actions.model import Action, ActionResult, ActionTimes, Command, Ended, Performed
from corral.actions.outputs import Captured, Collector
from corral.actions.ports import Images, InputRoots, Sandboxes
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobStore
from corral.images.ports import ImageLease
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, StoreUnavailable
from corral.sandboxes.link.execution import Channel
from corral.sandboxes.model import ExecRequest, ExecResult, Size
from corral.sandboxes.pool import Lease
from corral.sandboxes.pool_model import PoolKey
from corral.sandboxes.sandbox import Sandbox

T = TypeVar("T")
ROOT: Final = "/work/build"
"""Where the input root lies in every sandbox; always the same, because compilers write it into their outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What this worker gives to actions.

    Attributes:
        runtime: for platforms that name none.
        roots: directories (and what is below them) that ``image`` may name as ``root:/dir``.
    """

    runtime: str
    size: Size
    size_max: Size
    network: bool = False
    roots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerServices:
    """What all actions of a worker share.

    Attributes:
        worker: this worker's id, as results name it.
        spool: a folder of this process, for bytes on their way to the store.
        images: where OCI images come from; None when this worker runs none.
    """

    blobs: BlobStore
    inputs: InputRoots
    sandboxes: Sandboxes
    policy: SandboxPolicy
    clock: Clock
    spool: Path
    worker: str
    images: Images | None = None
    config: ActionWorkerConfig = field(default_factory=ActionWorkerConfig)


def _nobody(at_s: float) -> None:
    """Nobody wants to know when it starts."""


class ActionRunner:
    """Runs actions; any number at once, each in a sandbox of its own."""

    def __init__(self, services: RunnerServices) -> None:
        self._services = services

    async def run(
        self,
        tenant: str,
        digest: Digest,
        *,
        platform: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        queued_s: float = 0.0,
        on_started: Callable[[float], None] = _nobody,
    ) -> Performed:
        """Run an action; a non-zero exit, a signal, a limit and the timeout are results.

        Args:
            platform: properties that replace those of the action (a scheduler has resolved its pool); None: its own.
            timeout_s: for an action that names none; None: this worker's default.
            queued_s: when it was asked for, for the result's times; 0 when that was now.
            on_started: called with the instant at which the command starts; it must not wait.

        Raises:
            MissingBlobs: the action, its command or some of its inputs are not stored; all that is known of them.
            InvalidSpec: it is malformed, asks for what this worker does not give, or left an output of a wrong kind.
            TooLarge: its inputs or outputs are over this worker's limits.
            CapacityError, DependencyError: no sandbox, no image, a store that fails: another try may work.
        Cancellation: kills the command first; nothing is told.
        """
        started_s = self._services.clock.now_s()
        action, command = await self._load(tenant, digest)
        check_command(command)
        asked = read_platform(properties_of(action, command) if platform is None else platform)
        key = self._pool_key(tenant, asked)
        attempt = _Attempt(self._services, tenant, digest, action, command)
        attempt.times = ActionTimes(queued_s=queued_s or started_s, worker_start_s=started_s)
        limit_s = action.timeout_s or timeout_s or self._services.config.timeout_s
        image = await self._image(asked, key)
        try:
            if image is not None:
                key = PoolKey(key.tenant, image.image.root, key.runtime, key.size, key.network)
            performed = await attempt.carry_out(key, limit_s, on_started)
        finally:
            if image is not None:
                image.release_nowait()
        return performed if image is None else _with_image(performed, image)

    async def _load(self, tenant: str, digest: Digest) -> tuple[Action, Command]:
        most = self._services.config.message_bytes
        wanted = digest
        try:
            action = read_action(
                await read_bytes(self._services.blobs, tenant, digest, bytes_max=most), digest.function
            )
            wanted = action.command
            command = read_command(await read_bytes(self._services.blobs, tenant, wanted, bytes_max=most))
        except NotFound:
            raise MissingBlobs([wanted]) from None
        return action, command

    def _pool_key(self, tenant: str, asked: Platform) -> PoolKey:
        policy = self._services.policy
        size = asked.size(policy.size)
        mistakes = size_mistakes(size, policy.size_max)
        if asked.network and not policy.network:
            mistakes.append("platform: this worker gives no network to actions")
        root = asked.image.removeprefix("root:") if asked.image.startswith("root:") else ""
        if root and not any(root == each or root.startswith(each.rstrip("/") + "/") for each in policy.roots):
            mistakes.append(f'platform: this worker does not offer the root "{root[:100]}"')
        if mistakes:
            raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))
        return PoolKey(tenant, root, asked.runtime or policy.runtime, size, asked.network)

    async def _image(self, asked: Platform, key: PoolKey) -> ImageLease | None:
        if not asked.image or key.root:
            return None
        if self._services.images is None:
            raise InvalidSpec(f'platform: this worker runs no images, so not "{asked.image[:100]}" either')
        return await self._services.images.lease(asked.image)


class _Attempt:
    """What is known of one run while it goes on."""

    def __init__(self, services: RunnerServices, tenant: str, digest: Digest, action: Action, command: Command) -> None:
        self._services = services
        self._tenant = tenant
        self._action = action
        self._command = command
        self._function = digest.function
        self._streams = {1: Captured(digest.function, services.spool), 2: Captured(digest.function, services.spool)}
        self.times = ActionTimes()

    async def carry_out(self, key: PoolKey, limit_s: float, on_started: Callable[[float], None]) -> Performed:
        services = self._services
        now = services.clock.now_s
        self._mark(input_fetch_start_s=now())
        root = await _within(
            services.config.fetch_within_s,
            "the inputs did not come",
            services.inputs.fetch(self._tenant, self._action.input_root, key.runtime),
        )
        try:
            asked_s = services.clock.monotonic_s()
            lease = await services.sandboxes.acquire(key, within_s=services.config.acquire_within_s)
            acquire_s = services.clock.monotonic_s() - asked_s
            async with lease:
                async with root.staged(lease.sandbox, ROOT, parents_of(self._command)):
                    self._mark(input_fetch_completed_s=now())
                    executed = await self._execute(lease.sandbox, limit_s, on_started)
                    outputs, named = await _within(
                        services.config.collect_within_s,
                        "the outputs were not stored",
                        self._collect(lease.sandbox, executed),
                    )
            result = await _within(
                services.config.collect_within_s,
                "stdout and stderr were not stored",
                self._finished(executed, outputs, named),
            )
            return self._performed(executed, result, named, lease, acquire_s, key, root.input_files, root.total_bytes)
        finally:
            root.release_nowait()
            for stream in self._streams.values():
                stream.close()

    async def _execute(self, sandbox: Sandbox, limit_s: float, on_started: Callable[[float], None]) -> ExecResult:
        working = self._command.working_directory.strip("/")
        request = ExecRequest(
            argv=self._command.arguments,
            env=self._command.environment,
            cwd=f"{ROOT}/{working}" if working else ROOT,
            timeout_s=limit_s,
            output_bytes_max=self._services.config.output_bytes_max,
        )
        start_s = self._services.clock.now_s()
        on_started(start_s)
        self._mark(execution_start_s=start_s)
        streams = self._streams

        def take(channel: Channel, data: bytes) -> Awaitable[None] | None:
            return streams[channel].write(data)

        executed = await sandbox.exec(request, on_output=take)
        self._mark(execution_completed_s=self._services.clock.now_s())
        return executed

    async def _collect(self, sandbox: Sandbox, executed: ExecResult) -> tuple[ActionResult, list[Digest]]:
        self._mark(output_upload_start_s=self._services.clock.now_s())
        if sandbox.lost is not None or ended_as(executed) is Ended.NOT_STARTED:
            return ActionResult(), []
        collector = Collector(
            blobs=self._services.blobs,
            tenant=self._tenant,
            function=self._function,
            spool=self._services.spool,
            root=ROOT,
            config=self._services.config,
        )
        return await collector.collect(sandbox, self._command)

    async def _finished(self, executed: ExecResult, outputs: ActionResult, named: list[Digest]) -> ActionResult:
        services = self._services
        told = [
            await self._streams[channel].store(services.blobs, self._tenant, inline_bytes=services.config.inline_bytes)
            for channel in (1, 2)
        ]
        named += [digest for _, digest in told if digest is not None]
        now_s = services.clock.now_s()
        self._mark(output_upload_completed_s=now_s, worker_completed_s=now_s)
        return msgspec.structs.replace(
            outputs,
            exit_code=executed.shell_status,
            stdout=told[0][0],
            stdout_digest=told[0][1],
            stderr=told[1][0],
            stderr_digest=told[1][1],
            worker=services.worker,
            times=self.times,
        )

    def _performed(
        self,
        executed: ExecResult,
        result: ActionResult,
        named: list[Digest],
        lease: Lease,
        acquire_s: float,
        key: PoolKey,
        input_files: int,
        input_bytes: int,
    ) -> Performed:
        environment = "\0".join(sorted(f"{name}={value}" for name, value in self._command.environment))
        return Performed(
            result=result,
            ended=ended_as(executed),
            message=executed.message,
            named=tuple(dict.fromkeys(named)),
            do_not_cache=self._action.do_not_cache,
            argv=self._command.arguments,
            env_digest=str(Digest.of(environment.encode(errors="surrogateescape"))),
            image=f"root:{key.root}" if key.root else "",
            runtime=key.runtime,
            sandbox=lease.sandbox.spec.id,
            warm=lease.warm,
            cold_reason=lease.cold_reason,
            acquire_s=acquire_s,
            input_files=input_files,
            input_bytes=input_bytes,
            exit_status=executed.exit_status,
            signal=executed.signal,
            usage=executed.usage,
        )

    def _mark(self, **instants: float) -> None:
        self.times = msgspec.structs.replace(self.times, **instants)


async def _within(limit_s: float, what: str, step: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await step
    except TimeoutError as error:
        raise StoreUnavailable(f"{what} within {limit_s:g} s") from error


def _with_image(performed: Performed, image: ImageLease) -> Performed:
    return replace(performed, image=image.image.digest)
