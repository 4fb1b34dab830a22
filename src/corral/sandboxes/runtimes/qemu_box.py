"""One sandbox in a QEMU machine: a process box, and the console of the machine in it."""

from typing import Final

import structlog

from corral.sandboxes.guest.console import Console
from corral.sandboxes.link import Link
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.ports import LimitEvents
from corral.sandboxes.runtimes.box import ProcessBox

_log = structlog.get_logger(__name__)
_TOLD_CHARACTERS: Final = 1000


class MachineBox:
    """See ``ports.Box``."""

    def __init__(self, inner: ProcessBox, console: Console) -> None:
        self._inner = inner
        self._console = console

    @property
    def spec(self) -> SandboxSpec:
        return self._inner.spec

    @property
    def link(self) -> Link:
        return self._inner.link

    @property
    def pid(self) -> int:
        """The confined QEMU's process id on the host, for tests and for people."""
        return self._inner.pid

    @property
    def console(self) -> str:
        """The last words of the guest's kernel."""
        return self._console.text

    def limit_events_nowait(self) -> LimitEvents:
        return self._inner.limit_events_nowait()

    async def stop(self) -> None:
        if self.link.lost is not None and self.console:
            _log.warning("a machine ended by itself", sandbox=self.spec.id, console=self.console[-_TOLD_CHARACTERS:])
        try:
            await self._inner.stop()
        finally:
            self._console.close()
