"""The process that unpacks one image: ``python -m corral.images.unpack``, told what to do on stdin.

It runs beside the worker so that no archive can take the worker's memory or its loop: its address space, the files
that it writes and its time are bounded by the kernel. It says how far it is in lines of JSON on stdout; the last one
is ``unpacked`` or ``failed``. It ends at once when its stdin does: whoever started it is gone.
"""

import errno
import os
import resource
import sys
import threading
from collections.abc import Iterator
from typing import Final

import msgspec

from corral.images.adapters.sources import open_source
from corral.images.model import Failed, Layer, Order, Progress, Tally, Unpacked, printable
from corral.images.ports import ImageSource
from corral.images.streams import Ahead, ExactReader, counted, decompressed, verified
from corral.images.tar import TarMistake, TarReader
from corral.images.tree import Tree
from corral.kernel.clock import SystemClock
from corral.kernel.errors import CorralError, InvalidSpec, QuotaExceeded, StoreUnavailable, TooLarge

_TELL_EVERY_S: Final = 0.2
_LOOK_EVERY_BYTES: Final = 16 * 1024**2
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Unpacking:
    """Carries out one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._clock = SystemClock()
        self._done_bytes = 0
        self._unlooked_bytes = _LOOK_EVERY_BYTES
        self._told_s = float("-inf")
        self._layer = 0
        self._tree = Tree(order.directory, order.limits, subject=order.subject, refuse_setid=order.setid == "refuse")

    def run(self) -> Tally:
        """Raises: CorralError; MemoryError; OSError."""
        order = self._order
        with open_source(order.place, subject=order.subject, limits=order.limits) as source:
            for number, layer in enumerate(order.manifest.layers, start=1):
                self._layer = number
                self._unpack(source, layer)
        self._tree.close()
        return Tally(size_bytes=self._tree.bytes.used, entries=self._tree.entries.used)

    def _unpack(self, source: ImageSource, layer: Layer) -> None:
        what = f"{self._order.subject}: layer {self._layer} ({layer.digest})"
        ahead = Ahead(self._tar(source, layer, what))
        try:
            reader = ExactReader(iter(ahead))
            self._tree.begin_layer()
            try:
                archive = TarReader(reader)
                for member in archive:
                    self._tree.add(member, self._watched(archive.content()))
                    self._tell()
            except (TarMistake, InvalidSpec) as mistake:
                reader.drain()  # bytes that do not match their digest are the better explanation
                if isinstance(mistake, InvalidSpec):
                    raise
                raise InvalidSpec(f"{what} {mistake.message}") from mistake
            reader.drain()
        finally:
            ahead.close()
        self._tell(force=True)

    def _tar(self, source: ImageSource, layer: Layer, what: str) -> Iterator[bytes]:
        travelled = counted(source.layer(layer), self._travelled)
        true = verified(travelled, layer.digest, layer.size_bytes, what=what)
        plain = counted(decompressed(true, what=what), self._tree.bytes.take)
        return verified(plain, layer.diff_id, None, what=f"{what}, decompressed")

    def _travelled(self, size: int) -> None:
        self._done_bytes += size

    def _watched(self, content: Iterator[bytes]) -> Iterator[bytes]:
        """Look at the disk now and then."""
        for piece in content:
            self._unlooked_bytes += len(piece)
            if self._unlooked_bytes >= _LOOK_EVERY_BYTES:
                self._unlooked_bytes = 0
                space = os.statvfs(self._order.directory)
                if space.f_bavail * space.f_frsize < self._order.keep_free_bytes:
                    raise QuotaExceeded(
                        f"{self._order.subject}: the disk of the worker's images has less than "
                        f"images.keep_free_bytes ({self._order.keep_free_bytes}) left"
                    )
            self._tell()
            yield piece

    def _tell(self, *, force: bool = False) -> None:
        now_s = self._clock.monotonic_s()
        if force or now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            say(
                Progress(
                    stage="unpacking",
                    layer=self._layer,
                    layers=len(self._order.manifest.layers),
                    done_bytes=self._done_bytes,
                    total_bytes=self._order.manifest.size_bytes,
                    entries=self._tree.entries.used,
                )
            )


def say(message: Progress | Unpacked | Failed) -> None:
    """One line."""
    os.write(1, msgspec.json.encode(message) + b"\n")


def failed(error: BaseException, order: Order) -> Failed:
    """What the worker is told of an error."""
    if isinstance(error, CorralError):
        return Failed(code=error.code, message=error.message, cure=error.cure)
    if isinstance(error, MemoryError):
        limit = order.limits.memory_bytes
        return Failed(code=TooLarge.code, message=f"{order.subject}: passes images.limits.memory_bytes ({limit})")
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failed(code=QuotaExceeded.code, message=f"{order.subject}: the disk of the worker's images is full")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        limit = order.limits.file_bytes
        return Failed(code=TooLarge.code, message=f"{order.subject}: passes images.limits.file_bytes ({limit})")
    if isinstance(error, OSError):
        where = f' at "{printable(os.fsdecode(error.filename))}"' if error.filename else ""
        return Failed(
            code=StoreUnavailable.code, message=f"{order.subject}: cannot be written: {error.strerror}{where}"
        )
    return Failed(code="internal", message=f"{order.subject}: {type(error).__name__}: {printable(str(error))}")


def _bound(order: Order) -> None:
    limits = order.limits
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(limits.prepare_within_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (2 * seconds, 2 * seconds + 5))
    os.umask(0o022)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> int:
    """The first line of stdin is the order."""
    order = msgspec.json.decode(_first_line(), type=Order)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _bound(order)
    try:
        tally = Unpacking(order).run()
    except Exception as error:  # noqa: BLE001 (process boundary: the worker is told)
        say(failed(error, order))
        return 1
    say(Unpacked(tally=tally))
    return 0


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            break
        line += piece
    return line


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread may sit in the network; nothing is left to tidy
