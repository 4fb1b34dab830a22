"""Templates: machines that were frozen when they had booted, and from which others go on.

A template is two files in memory: the machine's RAM, sealed, of which every clone has a private copy-on-write map, and
the state of its devices. Nothing of a sandbox is in it: clones get their own clock, randomness, name and limits.
"""

import asyncio
import errno
import fcntl
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Self

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.guest.machine import MachineShape
from corral.sandboxes.guest.qmp import Qmp

STATE: Final = "state"
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SEAL_WITHIN_S: Final = 5.0
_SEAL_TRY_S: Final = 0.005
_CAPABILITIES: Final = ("events", "x-ignore-shared")

Boot = Callable[["Template"], Awaitable[None]]


class Template:
    """Descriptors of one frozen machine; ``close`` frees them, clones that run keep what they have."""

    def __init__(self, shape: MachineShape) -> None:
        self.shape = shape
        self.memory = os.memfd_create("corral-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.state = os.memfd_create("corral-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory, shape.machine_bytes)

    @property
    def resident_bytes(self) -> int:
        """What of the machine's memory was ever written."""
        return os.fstat(self.memory).st_blocks * 512

    def opened_state(self) -> int:
        """A descriptor of its own for one clone: reading moves it."""
        return os.open(f"/proc/self/fd/{self.state}", os.O_RDONLY | os.O_CLOEXEC)

    async def seal(self) -> None:
        """Nobody can change it any more. The QEMU that wrote it has ended. Raises SandboxFailed."""
        try:
            async with asyncio.timeout(_SEAL_WITHIN_S):
                while not _sealed(self.memory):  # noqa: ASYNC110 - the kernel tells nobody when a map is gone
                    await asyncio.sleep(_SEAL_TRY_S)
        except TimeoutError:
            raise SandboxFailed("the memory of a template is still mapped by its QEMU") from None
        _sealed(self.state)

    def close(self) -> None:
        """Idempotent."""
        for descriptor in (self.memory, self.state):
            if descriptor >= 0:
                os.close(descriptor)
        self.memory = self.state = -1


def _sealed(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


async def freeze(monitor: Qmp, template: Template) -> None:
    """Stop the machine behind ``monitor`` and keep its state. Raises SandboxFailed, SandboxLost."""
    await _enable(monitor)
    await monitor.do("stop")
    await monitor.pass_descriptor(STATE, template.state)
    await monitor.do("migrate", uri=f"fd:{STATE}")
    await monitor.wait_migrated()


async def thaw(monitor: Qmp, descriptor: int) -> None:
    """Give the machine behind ``monitor`` the state at its ``descriptor``, and let it run. Raises as ``freeze``."""
    await _enable(monitor)
    await monitor.do("migrate-incoming", uri=f"fd:{descriptor}")
    await monitor.wait_migrated()
    await monitor.do("cont")


async def _enable(monitor: Qmp) -> None:
    states = [{"capability": name, "state": True} for name in _CAPABILITIES]
    await monitor.do("migrate-set-capabilities", capabilities=states)


class Templates:
    """Templates by key, made once however many want one; beyond ``most`` the one unused for longest goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: OrderedDict[str, Template] = OrderedDict()
        self._making: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._made)

    async def get(self, shape: MachineShape, boot: Boot) -> Template:
        """The template of this shape; ``boot`` boots and freezes it when there is none.

        Use it before the next await: somebody else's wish may evict it. Raises and cancellation: as ``boot``.
        """
        key = shape.key
        if key not in self._made:
            lock = self._making.setdefault(key, asyncio.Lock())
            try:
                async with lock:
                    if key not in self._made:
                        await self._make(key, shape, boot)
            finally:
                if not lock.locked():
                    self._making.pop(key, None)
        self._made.move_to_end(key)
        return self._made[key]

    async def _make(self, key: str, shape: MachineShape, boot: Boot) -> None:
        template = Template(shape)
        try:
            await boot(template)
            await template.seal()
        except BaseException:
            template.close()
            raise
        self._made[key] = template
        while len(self._made) > self._most:
            self._made.popitem(last=False)[1].close()

    def close(self) -> None:
        """Idempotent."""
        while self._made:
            self._made.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
