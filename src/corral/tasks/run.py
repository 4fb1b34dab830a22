"""One run on its worker: the stages, in order, and one end.

``carry_out`` is the attempt boundary: it never raises an ``Exception``, whatever the task, a plugin or a runtime does.
An abort may come at any moment and its reason stands; nothing that happens later changes it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import msgspec
import structlog

from corral.blobs.ports import BlobStore
from corral.images.ports import ImageLease
from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish
from corral.kernel.errors import InvalidSpec
from corral.sandboxes.model import ExecRequest, ExecResult, Usage
from corral.sandboxes.pool_model import PoolKey
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import CoreFields
from corral.tasks.environment import environment_digest
from corral.tasks.hooks import HooksFailed, TaskPlugins
from corral.tasks.image import ImageLog, RunImages, image_environment, image_secret
from corral.tasks.model import Phase, Reason, Resolved, RunUsage
from corral.tasks.paths import WORK, absolute_directory
from corral.tasks.payload import PayloadSchema
from corral.tasks.placing import pool_key
from corral.tasks.plugin import ExecDraft, Plugin, RunContext, TaskPlugin
from corral.tasks.ports import Claim
from corral.tasks.run_config import RunConfig
from corral.tasks.run_log import RunLog
from corral.tasks.stages import Ending, Resolution, Stage, aborted, failure_of, most_telling
from corral.tasks.staging import stage_inputs

_log = structlog.get_logger(__name__)
_MESSAGE_CHARACTERS_MAX: Final = 2000


class WorkKind(Protocol):
    """Carries out runs whose payload is no command; it brings its own sandbox, log and outputs."""

    async def carry_out(self, claim: Claim, *, on_started: Callable[[float], None]) -> Resolved:
        """From the payload to the end; never ``phase`` exception for what a command did.

        Raises: any error, which then ends the run as it would end a command's (``tasks.stages``).
        Cancellation: everything that it started is gone before CancelledError leaves.
        """
        ...


class SandboxLease(Protocol):
    """A sandbox that is ours until it is released."""

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox."""
        ...

    @property
    def warm(self) -> bool:
        """True when it was there already."""
        ...

    @property
    def cold_reason(self) -> str:
        """Why it was not, or ""."""
        ...

    def release_nowait(self) -> None:
        """Give it back: it is emptied and kept, or destroyed. Idempotent."""
        ...


class Sandboxes(Protocol):
    """Where sandboxes come from."""

    async def acquire(self, key: PoolKey, *, within_s: float | None = None) -> SandboxLease:
        """A sandbox of ``key``. Raises PoolExhausted, SandboxFailed, InvalidSpec. Cancellation: nothing is held."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """What all runs of a worker share.

    Attributes:
        runtime: the runtime of tasks that name none.
        images: where OCI images come from; None when this worker runs none.
        new_incident: makes the id under which an unexpected error is found in the worker's log.
        kinds: who carries out payloads that are no commands, by the one key that such a payload has.
    """

    sandboxes: Sandboxes
    blobs: BlobStore
    clock: Clock
    plugins: Sequence[Plugin]
    schema: PayloadSchema
    config: RunConfig
    runtime: str
    new_incident: Callable[[], str]
    images: RunImages | None = None
    kinds: Mapping[str, WorkKind] = field(default_factory=dict)


class Run:
    """One run. Made for a claim, carried out once."""

    def __init__(self, services: RunServices, claim: Claim, *, on_started: Callable[[float], None]) -> None:
        """``on_started(at_s)`` is called when the command is started; it must not wait."""
        self.claim = claim
        self.stage = Stage.PREPARE
        self._services = services
        self._on_started = on_started
        self._ending = Ending()
        self._scope: asyncio.Timeout | None = None
        self._log = RunLog(claim.secrets.values())
        self._context = RunContext(
            claim=claim, core=None, log=self._log, blobs=services.blobs, clock=services.clock, work=WORK
        )
        self._plugins = TaskPlugins(())
        self._lease: SandboxLease | None = None
        self._image: ImageLease | None = None
        self._image_digest = ""
        self._usage = RunUsage()
        self._argv: tuple[str, ...] = ()
        self._env_digest = ""
        self._result: ExecResult | None = None
        self._told: Resolved | None = None

    def abort(self, reason: Reason) -> bool:
        """End it now, for a reason from outside: the process tree is killed. False when it has ended already."""
        if not self._ending.settle(aborted(reason)):
            return False
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())  # a cancel scope: cancels what runs inside
        return True

    @property
    def ended(self) -> bool:
        """True when its end is settled; it may still be cleaning up."""
        return self._ending.resolution is not None

    async def carry_out(self) -> Resolved | None:
        """From the payload to the end; what to tell the queue, or None when there is nothing to tell.

        Cancellation: as ``abort(WORKER_SHUTDOWN)``; CancelledError leaves after the cleanup.
        """
        try:
            await self._bounded_stages()
        except asyncio.CancelledError:
            self._ending.settle(aborted(Reason.WORKER_SHUTDOWN))
            await finish(self._wind_up(), within_s=self._services.config.cleanup_within_s)
            raise
        except HooksFailed as failed:
            self._fail(failed.errors)
        except Exception as error:  # noqa: BLE001 (attempt boundary: a bad task must not end its worker)
            self._fail([error])
        if self._untidy:
            await finish(self._wind_up(), within_s=self._services.config.cleanup_within_s)
        self.stage = Stage.RESOLVED
        return self._report()

    async def _bounded_stages(self) -> None:
        try:
            async with asyncio.timeout(None) as self._scope:
                if self._ending.resolution is None:  # not aborted before it began
                    await self._whole()
        except TimeoutError:
            if self._ending.resolution is None:
                raise  # not ours: something inside ran out of time

    async def _whole(self) -> None:
        kinds = self._services.kinds
        kind = next((kinds[key] for key in self.claim.definition.payload if key in kinds), None)
        if kind is None:
            await self._stages()
            return
        self.stage = Stage.WAITING
        told = self._told = await kind.carry_out(self.claim, on_started=self._on_started)
        self._ending.settle(Resolution(phase=told.phase, reason=told.reason, message=told.message))

    async def _stages(self) -> None:
        core, key = self._prepare()

        self.stage = Stage.BUILD
        draft = ExecDraft(argv=core.command, cwd=absolute_directory(core.cwd, self._context.work))
        if core.reference:
            image = await self._prepare_image(core)
            key = replace(key, root=image.image.root)
            draft.env.update(image_environment(image.image.record.settings))
        await self._plugins.call("build", draft)
        self._argv = draft.argv
        self._env_digest = environment_digest(draft.env, self.claim.secrets)

        self.stage = Stage.START
        sandbox = await self._acquire(key)
        if core.inputs:
            async with asyncio.timeout(self._services.config.stage_within_s):
                await stage_inputs(self._context, core.inputs, sandbox)
        await self._plugins.call("start", sandbox)

        self.stage = Stage.STARTED
        self._on_started(self._services.clock.now_s())
        await self._plugins.call("started")

        self.stage = Stage.WAITING
        result = self._result = await sandbox.exec(
            _request(draft, reset_after=not self._plugins.take_out), on_output=self._log.write
        )
        if (waiting := self._log.command_ended()) is not None:
            await waiting

        self.stage = Stage.STOPPED
        success = all(await self._plugins.call("stopped", result, sandbox))
        self._release()
        await self._log.close()

        self.stage = Stage.FINISHED
        phase = Phase.COMPLETED if success else Phase.FAILED
        await self._plugins.call("finished", phase)
        self._ending.settle(Resolution(phase=phase, message=self._context.note))

    def _prepare(self) -> tuple[CoreFields, PoolKey]:
        services = self._services
        decoded = services.schema.decode(self.claim.definition.payload)
        core = self._context.core = decoded.core
        members: list[tuple[str, TaskPlugin]] = []
        errors: list[Exception] = []
        for plugin in services.plugins:
            try:
                member = plugin.attach(self._context, decoded.sections[plugin.name])
            except Exception as error:  # noqa: BLE001 (hook boundary: the others attach, so that the log can tell it)
                errors.append(error)
            else:
                if member is not None:
                    members.append((plugin.name, member))
        self._plugins = TaskPlugins(members, within_s=services.config.hook_within_s)
        if decoded.mistakes:
            errors.append(InvalidSpec(decoded.mistakes[0], mistakes=decoded.mistakes))
        if core is not None:
            try:
                key = pool_key(self.claim, core, services.config, runtime=services.runtime)
            except InvalidSpec as error:
                errors.append(error)
        if errors:
            raise HooksFailed(errors)
        assert core is not None  # a core that cannot be decoded is a mistake
        return core, key

    async def _prepare_image(self, core: CoreFields) -> ImageLease:
        images = self._services.images
        if images is None:
            raise InvalidSpec(f'payload.image: this worker runs no images, so not "{core.reference}" either')
        secret = image_secret(core, self.claim.secrets)
        told = ImageLog(core.reference, self._log, self._services.clock)
        lease = self._image = await images.lease(core.reference, secret=secret, on_progress=told.progress)
        self._image_digest = lease.image.digest
        told.ready(lease.image)
        return lease

    async def _acquire(self, key: PoolKey) -> Sandbox:
        services = self._services
        asked_s = services.clock.monotonic_s()
        lease = self._lease = await services.sandboxes.acquire(key, within_s=services.config.acquire_within_s)
        self._usage = RunUsage(
            acquire_s=services.clock.monotonic_s() - asked_s,
            warm=lease.warm,
            cold_reason=lease.cold_reason,
            sandbox=lease.sandbox.spec.id,
            runtime=key.runtime,
        )
        return lease.sandbox

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release_nowait()
        image, self._image = self._image, None
        if image is not None:
            image.release_nowait()  # what stands on it in a pool keeps it

    def _fail(self, errors: Sequence[Exception]) -> None:
        failure = most_telling([failure_of(error) for error in errors])
        messages = list(failure.messages)
        for error in errors:
            if failure_of(error).unexpected:
                incident = self._services.new_incident()
                messages.append(f"incident {incident}: the operator finds the details in the worker's log")
                _log.error("incident", incident=incident, task=self.claim.ref.task_id, stage=self.stage, exc_info=error)
        message = "; ".join(messages)[:_MESSAGE_CHARACTERS_MAX]
        resolution = Resolution(phase=Phase.EXCEPTION, reason=failure.reason, message=message)
        if self._ending.settle(resolution) and not self._log.closed:
            for each in messages:
                self._log.error(each)

    @property
    def _untidy(self) -> bool:
        resolution = self._ending.resolution
        return resolution is None or resolution.phase is Phase.EXCEPTION or self._plugins.has("dispose")

    async def _wind_up(self) -> None:
        """Free everything, and tell the plugins of an exception; each step is tried whatever became of the others."""
        resolution = self._ending.resolution
        self._release()
        if resolution is not None and resolution.phase is Phase.EXCEPTION:
            if not self._log.closed and resolution.message == "":
                self._log.error(f"the run was aborted: {resolution.reason}")
            await self._quietly("end of the log", self._log.close())
            await self._quietly("exception hooks", self._plugins.call("exception", resolution.reason))
        await self._quietly("dispose hooks", self._plugins.call("dispose"))

    async def _quietly(self, what: str, step: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._services.config.cleanup_within_s / 2):
                await step
        except Exception as error:  # noqa: BLE001 (attempt boundary: the run has its end already, this is cleanup)
            ref = self.claim.ref
            _log.warning("cleanup of a run failed", step=what, task=ref.task_id, run=ref.run, exc_info=error)

    def _report(self) -> Resolved | None:
        resolution = self._ending.resolution
        assert resolution is not None  # _bounded_stages settles, or raises and _fail settles
        if not resolution.told:
            return None
        told = self._told
        if told is not None and (told.phase, told.reason) == (resolution.phase, resolution.reason):
            return told
        result = self._result
        return Resolved(
            at_s=self._services.clock.now_s(),
            phase=resolution.phase,
            reason=resolution.reason,
            exit_status=None if result is None else result.exit_status,
            signal=None if result is None else result.signal,
            end="" if result is None else result.end.value,
            message=resolution.message,
            argv=self._argv,
            env_digest=self._env_digest,
            image=self._image_digest or ("" if self._context.core is None else self._context.core.image),
            inputs=tuple(self._context.inputs),
            artifacts=tuple(self._context.artifacts),
            log_bytes=self._log.size_bytes,
            usage=self._usage if result is None else _with_usage(self._usage, result.usage),
        )


def _request(draft: ExecDraft, *, reset_after: bool) -> ExecRequest:
    return ExecRequest(
        argv=draft.argv,
        env=tuple(draft.env.items()),
        cwd=draft.cwd,
        timeout_s=draft.timeout_s,
        output_bytes_max=draft.output_bytes_max,
        merge_output=True,  # the log keeps the order of what the command wrote
        reset_after=reset_after,
    )


def _with_usage(usage: RunUsage, used: Usage) -> RunUsage:
    return msgspec.structs.replace(
        usage,
        wall_s=used.wall_s,
        cpu_user_s=used.cpu_user_s,
        cpu_system_s=used.cpu_system_s,
        memory_peak_bytes=used.memory_peak_bytes,
    )
