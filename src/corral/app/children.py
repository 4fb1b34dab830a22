"""Child processes: started, started again when they die, and stopped; none survives its parent."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from corral.app.config_sections import SupervisorConfig
from corral.app.start import REFUSED
from corral.app.supervision import GiveUp, Restarts, died
from corral.kernel.clock import SystemClock
from corral.kernel.errors import InvalidSpec, SchedulerUnavailable

_log = structlog.get_logger("corral.children")

OnLine = Callable[[str], None]


class Child:
    """One child process and its restarts. ``arguments`` and ``environment`` are asked for at every start."""

    def __init__(
        self,
        role: str,
        config: SupervisorConfig,
        arguments: Callable[[], Sequence[str]],
        environment: Callable[[], Mapping[str, str]],
    ) -> None:
        self.role = role
        self._config = config
        self._arguments = arguments
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._clock = SystemClock()

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def keep_running(self, on_line: OnLine | None = None) -> None:
        """Start it, and start it again whenever it dies; ``on_line`` hears each line of its stdout.

        Raises: InvalidSpec when its first start says that no restart will cure it; SchedulerUnavailable when it died
        too often.
        Cancellation: leaves it running; see :meth:`stop`.
        """
        history = Restarts()
        while True:
            started_s = self._clock.monotonic_s()
            status = await self._run_once(on_line)
            now_s = self._clock.monotonic_s()
            if status == REFUSED and not history.at_s:  # what was right once is right again, some time
                raise InvalidSpec(f"the {self.role} refused to start; it said why above")
            history, decision = died(history, started_s=started_s, now_s=now_s, config=self._config)
            if isinstance(decision, GiveUp):
                raise SchedulerUnavailable(
                    f"the {self.role} died {decision.restarts} times within {self._config.restarts_within_s:g} s",
                    cure="its own words are above; CORRAL_DEBUG=1 makes it say more",
                )
            _log.warning("restarting", child=self.role, ended=_ended(status), pause_s=decision.pause_s)
            await asyncio.sleep(decision.pause_s)

    async def _run_once(self, on_line: OnLine | None) -> int:
        command = [
            sys.executable,
            "-m",
            "corral.app.launch",
            self.role,
            "--parent",
            str(os.getpid()),
            *self._arguments(),
        ]
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **self._environment()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if on_line is not None else None,
            start_new_session=True,  # Ctrl-C is for us; we stop the children in order
        )
        if process.stdout is not None and on_line is not None:
            async for line in process.stdout:
                on_line(line.decode(errors="replace"))
        return await process.wait()

    async def stop(self, within_s: float) -> None:
        """Ask it to end, and kill it when ``within_s`` passed."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            _log.warning("killing", child=self.role, after_s=within_s)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _ended(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
