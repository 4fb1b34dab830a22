"""What functions write, kept for a while: two files per function, of which the older one is let go when both are full.

Lines arrive in memory and go to the disk in batches, in a thread; when it cannot keep up, the oldest that wait are
dropped and counted. ``seq`` grows over restarts, so a reader that comes back knows where it was.
"""

import asyncio
import os
import shutil
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from corral.functions.config import FunctionsConfig
from corral.functions.model import FunctionKey, LogLine
from corral.functions.traces import STREAM
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal

_TEXT_MAX: Final = 16 * 1024
_OVERHEAD: Final = 200  # of a line in memory and on disk, roughly
_PAGE: Final = 1000
_RETRY_S: Final = 1.0
_log = structlog.get_logger("corral.functions.logs")
_decode: Final = msgspec.json.Decoder(LogLine).decode


class FunctionLogs:
    """See the module; ``run`` for as long as lines come."""

    def __init__(self, directory: Path, clock: Clock, config: FunctionsConfig) -> None:
        self._directory = directory
        self._clock = clock
        self._config = config
        self._waiting: deque[LogLine] = deque()
        self._waiting_bytes = 0
        self._writing: Sequence[LogLine] = ()
        self._last_seq = 0
        self._disk = threading.Lock()  # held to write a batch, and to open both files of a function
        self._stored_seq = 0
        self._arrived = asyncio.Event()
        self.changed = Signal()
        self.dropped = 0

    def append_nowait(self, lines: Iterable[LogLine]) -> None:
        """Take lines; never waits, never raises."""
        for line in lines:
            self._last_seq = max(self._last_seq + 1, int(self._clock.now_s() * 1_000_000))
            kept = msgspec.structs.replace(line, seq=self._last_seq, text=line.text[:_TEXT_MAX])
            self._waiting.append(kept)
            self._waiting_bytes += _size(kept)
        while self._waiting_bytes > self._config.log_waiting_bytes:
            self._waiting_bytes -= _size(self._waiting.popleft())
            self.dropped += 1
        if self._waiting:
            self._arrived.set()
            self.changed.notify()

    async def run(self) -> None:
        """Write what arrives, until cancelled; what waits then is written first."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._flush()
        finally:
            self._store([*self._writing, *self._waiting])

    async def _flush(self) -> None:
        while self._waiting:
            self._writing = batch = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            failure = await asyncio.to_thread(self._store, batch)
            self._writing = ()
            if failure:
                self.dropped += len(batch)
                _log.warning("function-logs-lost", lines=len(batch), error=failure)
                await asyncio.sleep(_RETRY_S)

    def _store(self, lines: Sequence[LogLine]) -> str:
        """Append to the files; why not, if it did not work."""
        by_function: dict[FunctionKey, list[LogLine]] = {}
        with self._disk:
            for line in lines:
                if line.seq > self._stored_seq:  # else another thread was at it when ``run`` was cancelled
                    by_function.setdefault(line.key.function, []).append(line)
            self._stored_seq = max((line.seq for line in lines), default=self._stored_seq)
            try:
                for key, some in by_function.items():
                    self._append(key, some)
            except OSError as error:
                return error.strerror or type(error).__name__
        return ""

    def _append(self, key: FunctionKey, lines: Sequence[LogLine]) -> None:
        new, old = self._files(key)
        new.parent.mkdir(parents=True, exist_ok=True)
        with new.open("ab") as file:
            if file.tell() > self._config.log_bytes // 2:
                os.replace(new, old)
                self._append(key, lines)
                return
            file.write(b"\n".join((b"", *(msgspec.json.encode(line) for line in lines), b"")))

    async def read(
        self,
        key: FunctionKey,
        *,
        after: int,
        limit: int,
        revision: str = "",
        request_id: str = "",
        traces: bool = False,
    ) -> Sequence[LogLine]:
        """Lines after ``after``, oldest first; with ``after`` below 0 the newest ``limit``. ``traces``: only those."""
        wanted = _Wanted(after, revision, request_id, traces)
        unwritten = (*self._writing, *self._waiting)  # as of before the disk is read, so that none is in neither
        found = await asyncio.to_thread(self._stored, key, wanted)
        known = found[-1].seq if found else after
        found += [line for line in unwritten if line.key.function == key and line.seq > known and wanted.matches(line)]
        return found[-limit:] if after < 0 else found[:limit]

    async def follow(
        self, key: FunctionKey, *, after: int, revision: str = "", request_id: str = "", idle_s: float = 15.0
    ) -> AsyncGenerator[Sequence[LogLine], None]:
        """Lines after ``after`` as they come; an empty batch after ``idle_s`` without any. Ends never."""
        while True:
            newest = self._last_seq
            lines = await self.read(key, after=after, limit=_PAGE, revision=revision, request_id=request_id)
            if lines:
                after = lines[-1].seq
                yield lines
            elif newest == self._last_seq and not await self.changed.wait_notified(within_s=idle_s):
                yield ()

    def forget(self, key: FunctionKey) -> None:
        """The function is gone for good."""
        shutil.rmtree(self._files(key)[0].parent, ignore_errors=True)

    def _stored(self, key: FunctionKey, wanted: "_Wanted") -> list[LogLine]:
        new, old = self._files(key)
        files: list[IO[bytes]] = []
        with ExitStack() as opened:
            with self._disk:
                for path in (old, new):
                    with suppress(FileNotFoundError):
                        files.append(opened.enter_context(path.open("rb")))
            return [line for file in files for line in _lines(file) if wanted.matches(line)]

    def _files(self, key: FunctionKey) -> tuple[Path, Path]:
        folder = self._directory / key.tenant / key.name
        return folder / "new.jsonl", folder / "old.jsonl"


def _lines(file: IO[bytes]) -> Iterator[LogLine]:
    """Batches begin on a line of their own: the one before may be cut off, where a scheduler was killed."""
    for text in file:
        try:
            yield _decode(text)
        except msgspec.DecodeError:
            continue


@dataclass(frozen=True, slots=True)
class _Wanted:
    after: int
    revision: str
    request_id: str
    traces: bool

    def matches(self, line: LogLine) -> bool:
        return (
            line.seq > self.after
            and (line.stream == STREAM) is self.traces
            and (not self.revision or line.key.revision == self.revision)
            and (not self.request_id or line.request_id == self.request_id)
        )


def _size(line: LogLine) -> int:
    return len(line.text) + _OVERHEAD
