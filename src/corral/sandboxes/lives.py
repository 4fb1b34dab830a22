"""Lives of sandboxes: one task each, which starts or thaws it, waits until it dies or is no longer wanted, and
freezes or frees it.

Carries out what the pools decide about one sandbox, and reports what became of it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, InvalidSpec, NotFound, SandboxFailed, SandboxLost
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.pool_model import Died, Event, Frozen, PoolKey, ResetDone, Start, Started, StartFailed, Stopped
from corral.sandboxes.ports import Runtime, Snapshotting
from corral.sandboxes.sandbox import Sandbox

_STOP_WITHIN_S: Final = 20.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Life:
    """One sandbox's task. ``interruptible`` while it starts or waits: a stop or a freeze is then a cancellation."""

    id: str
    key: PoolKey
    thaw: str = ""
    task: asyncio.Task[None] | None = None
    sandbox: Sandbox | None = None
    stop_asked: bool = False
    freeze_asked: bool = False
    interruptible: bool = False  # a task that is cancelled before its first step would free nothing

    def was_asked_to_end(self) -> bool:
        """Read anew after every await; a type checker would remember the fields."""
        return self.stop_asked or self.freeze_asked

    def interrupt(self) -> None:
        """What was asked for is looked at now, not when the present step ends."""
        if self.interruptible and self.task is not None:
            self.task.cancel()


class Lives:
    """All sandboxes that a worker has, frozen ones too. Its tasks run in ``tasks``; ``report`` hears every event.

    Attributes:
        freezing: runtimes whose sandboxes can become snapshots, by name.
        started, start_failures, frozen, thawed: how many there were.
    """

    def __init__(
        self, runtimes: Mapping[str, Runtime], tasks: asyncio.TaskGroup, report: Callable[[Event], None]
    ) -> None:
        self._runtimes = runtimes
        self.freezing = {
            name: runtime
            for name, runtime in runtimes.items()
            if runtime.capabilities.snapshot and isinstance(runtime, Snapshotting)
        }
        self._tasks = tasks
        self._report = report
        self._lives: dict[str, _Life] = {}
        self._snapshots: dict[str, tuple[Snapshotting, Digest]] = {}  # by the id of the frozen sandbox
        self.started = self.start_failures = self.frozen = self.thawed = 0

    def __len__(self) -> int:
        return len(self._lives)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """One that has started."""
        sandbox = self._lives[sandbox_id].sandbox
        assert sandbox is not None, "the machine hands out what has started"
        return sandbox

    def begin(self, effect: Start) -> None:
        """Start it, or go on from a frozen one; ends with one of StartFailed, Frozen and Stopped."""
        life = _Life(effect.id, effect.key, effect.thaw)
        self._lives[effect.id] = life
        life.task = self._tasks.create_task(self._live(life), name=f"sandbox:{effect.id}")

    def end(self, sandbox_id: str) -> None:
        """Stop it, whatever it is doing."""
        life = self._lives[sandbox_id]
        life.stop_asked = True
        life.interrupt()

    def freeze(self, sandbox_id: str) -> None:
        """Make a snapshot of one that waits; it ends with that."""
        life = self._lives[sandbox_id]
        life.freeze_asked = True
        life.interrupt()

    def forget(self, sandbox_id: str) -> None:
        """Drop a snapshot that nobody will go on from."""
        self._tasks.create_task(self._forget(sandbox_id), name=f"forget:{sandbox_id}")

    def make_new(self, sandbox_id: str) -> None:
        """Empty it for its next holder; ends with ResetDone, at once when it is as good as new already."""
        life = self._lives.get(sandbox_id)
        if life is None or life.sandbox is None:
            return
        if life.sandbox.as_new:
            self._report(ResetDone(sandbox_id, clean=True))
        else:
            self._tasks.create_task(self._reset(sandbox_id, life.sandbox), name=f"reset:{sandbox_id}")

    async def _live(self, life: _Life) -> None:
        """From start to freed."""
        ending: Event = Stopped(life.id)
        try:
            if not await self._interruptible(life, self._start(life)):
                return
            self.started += 1
            self._report(Started(life.id))
            assert life.sandbox is not None
            if await self._interruptible(life, life.sandbox.wait_lost()):
                self._report(Died(life.id))
            elif not life.stop_asked:
                life.freeze_asked = False  # from here on only a stop interrupts
                if await self._interruptible(life, self._freeze(life, life.sandbox)) and life.id in self._snapshots:
                    ending = Frozen(life.id)
        except (InvalidSpec, SandboxFailed) as error:
            self.start_failures += 1
            _log.warning("sandbox-start-failed", sandbox=life.id, runtime=life.key.runtime, error=str(error))
            ending = StartFailed(life.id, error, hopeless=isinstance(error, InvalidSpec))
        finally:
            if life.sandbox is not None:
                await self._free(life.id, life.sandbox)
            del self._lives[life.id]
            self._report(ending)

    async def _interruptible(self, life: _Life, step: Coroutine[Any, Any, None]) -> bool:
        """Await ``step``; False when it was interrupted because its end was asked for."""
        if life.was_asked_to_end():
            step.close()
            return False
        life.interruptible = True
        try:
            await step
        except asyncio.CancelledError:
            if life.task is None or not life.was_asked_to_end():
                raise
            life.task.uncancel()
            return False
        finally:
            life.interruptible = False
        return True

    async def _start(self, life: _Life) -> None:
        key = life.key
        spec = SandboxSpec(id=life.id, tenant=key.tenant, root=key.root, size=key.size, network=key.network)
        try:
            if life.thaw:
                life.sandbox = await self._thaw(life, spec)
            else:
                life.sandbox = Sandbox(await self._runtimes[key.runtime].start(spec))
        except (InvalidSpec, SandboxFailed):
            raise
        except Exception as error:  # the boundary to runtimes, which anybody may write
            raise SandboxFailed(f"the runtime {key.runtime} failed: {error!r}") from error

    async def _thaw(self, life: _Life, spec: SandboxSpec) -> Sandbox:
        snapshotting, digest = self._snapshots[life.thaw]
        try:
            sandbox = Sandbox(await snapshotting.restore(digest, spec))
        except NotFound as error:
            raise SandboxFailed(f"the frozen sandbox is gone: {error}") from error
        finally:
            await self._forget(life.thaw)  # what goes on from it lives without it
        self.thawed += 1
        return sandbox

    async def _freeze(self, life: _Life, sandbox: Sandbox) -> None:
        """Make a snapshot of it, which ends it; there is none when that did not work."""
        snapshotting = self.freezing[life.key.runtime]
        try:
            digest = await snapshotting.snapshot(sandbox.box)
        except CorralError as error:
            _log.warning("sandbox-not-frozen", sandbox=life.id, runtime=life.key.runtime, error=str(error))
            return
        self._snapshots[life.id] = (snapshotting, digest)
        self.frozen += 1

    async def _forget(self, sandbox_id: str) -> None:
        snapshotting, digest = self._snapshots.pop(sandbox_id)
        try:
            await snapshotting.forget(digest)
        except (CorralError, OSError) as error:  # it goes with the worker, or when others need its place
            _log.error("snapshot-not-removed", sandbox=sandbox_id, error=str(error))

    async def _free(self, sandbox_id: str, sandbox: Sandbox) -> None:
        try:
            await finish(sandbox.stop(), within_s=_STOP_WITHIN_S)
        except (CorralError, OSError, TimeoutError) as error:
            # what could be freed is; the next start of the worker sweeps the rest
            _log.error("sandbox-not-freed", sandbox=sandbox_id, error=str(error))

    async def _reset(self, sandbox_id: str, sandbox: Sandbox) -> None:
        try:
            clean = await sandbox.reset()
        except SandboxLost:
            clean = False
        self._report(ResetDone(sandbox_id, clean))
