"""Templates: machines that were frozen when they had booted, and from which others go on.

A template is two files in memory: the machine's RAM, sealed, of which every clone has a private copy-on-write map, and
the state of its devices. Nothing of a sandbox is in it: clones get their own clock, randomness, name and limits.

A page that the boot never wrote is a hole in that file, and the first clone that writes there makes the kernel fill the
hole with zeroes (for all clones, and for good: a sealed file cannot be punched) before it copies. So a template that
has grown is replaced by a copy without the zeroes; the old file goes with its last clone.
"""

import asyncio
import errno
import fcntl
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Self

from corral.kernel.concurrency import finish
from corral.kernel.errors import SandboxFailed
from corral.sandboxes.guest.machine import MachineShape
from corral.sandboxes.guest.qmp import Qmp
from corral.sandboxes.model import MIB

STATE: Final = "state"
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SEAL_WITHIN_S: Final = 5.0
_SEAL_TRY_S: Final = 0.005
_SHRINK_WITHIN_S: Final = 30.0
_GROWTH_BYTES: Final = 32 * MIB
_CAPABILITIES: Final = ("events", "x-ignore-shared")

Boot = Callable[["Template"], Awaitable[None]]


class Template:
    """Descriptors of one frozen machine; ``close`` frees them, clones that run keep what they have."""

    def __init__(self, shape: MachineShape) -> None:
        self.shape = shape
        self.memory = _new_memory(shape)
        self.state = os.memfd_create("corral-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._written: tuple[tuple[int, int], ...] = ()
        self._shrinking = False

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
        self._written = tuple(_extents(self.memory))

    @property
    def grown(self) -> bool:
        """Clones have filled so many holes that a copy is worth its price."""
        written = sum(length for _, length in self._written)
        return self.resident_bytes > 2 * written + _GROWTH_BYTES

    async def shrink(self) -> None:
        """Go on with a copy of what the boot had written; whoever asks meanwhile gets the old file."""
        if not self._shrinking:
            await finish(self._shrunk(), within_s=_SHRINK_WITHIN_S)

    async def _shrunk(self) -> None:
        self._shrinking = True
        source = os.dup(self.memory)  # ours, whatever becomes of the template
        try:
            fresh = await asyncio.to_thread(self._copy, source)
        finally:
            os.close(source)
            self._shrinking = False
        old, self.memory = (self.memory, fresh) if self.memory >= 0 else (fresh, -1)
        os.close(old)

    def _copy(self, source: int) -> int:
        fresh = _new_memory(self.shape)
        for begin, length in self._written:
            os.lseek(fresh, begin, os.SEEK_SET)
            done = 0
            while done < length:
                done += os.sendfile(fresh, source, begin + done, length - done)
        _sealed(fresh)
        return fresh

    def close(self) -> None:
        """Idempotent."""
        for descriptor in (self.memory, self.state):
            if descriptor >= 0:
                os.close(descriptor)
        self.memory = self.state = -1


def _new_memory(shape: MachineShape) -> int:
    descriptor = os.memfd_create("corral-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, shape.machine_bytes)
    return descriptor


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole."""
    size, at = os.fstat(descriptor).st_size, 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, at - begin


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
        if self._made[key].grown:
            await self._made[key].shrink()
        return self._made[key] if key in self._made else await self.get(shape, boot)

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
