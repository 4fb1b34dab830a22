"""Load on a function while its owner changes it, and the check that no request failed and none went astray.

Every answer carries its revision, in a header and as its body; the answer is right when that revision had a part of the
split at some moment between the request's first and last byte. A change that was answered holds for every later
request.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from corral.blobs.content import pieces_of
from corral.client import Corral, DeployRequest, FunctionView, Share
from corral.kernel.digest import Digest

Split = frozenset[str]


def printing(answer: str, complaint: str = "") -> bytes:
    """A WASI command of some 200 bytes that answers every request with ``answer``; made by hand, byte by byte.

    ``complaint`` goes to stderr first.
    """
    text = f"Content-Type: text/plain\n\n{answer}".encode()
    name = b"\x16wasi_snapshot_preview1"
    types = b"\x02\x60\x04\x7f\x7f\x7f\x7f\x01\x7f\x60\0\0"  # (i32 i32 i32 i32) -> i32, () -> ()
    imports = b"\x01" + name + b"\x08fd_write\0\0"
    exports = b"\x02\x06memory\x02\0\x06_start\0\x01"
    to_stderr = b"\x41\x02\x41\x10\x41\x01\x41\x08\x10\0\x1a" if complaint else b""  # fd_write(2, 16, 1, 8), drop
    body = b"\0" + to_stderr + b"\x41\x01\x41\0\x41\x01\x41\x08\x10\0\x1a\x0b"  # fd_write(1, 0, 1, 8), drop
    both = text + complaint.encode()
    numbers = (32, len(text), 0, 0, 32 + len(text), len(both) - len(text), 0, 0)
    memory = b"".join(number.to_bytes(4, "little") for number in numbers) + both
    data = b"\x01\0\x41\0\x0b" + _number(len(memory)) + memory
    sections = [
        *((1, types), (2, imports), (3, b"\x01\x01"), (5, b"\x01\0\x01"), (7, exports)),
        *((10, b"\x01" + _number(len(body)) + body), (11, data)),
    ]
    return b"\0asm\x01\0\0\0" + b"".join(bytes([kind]) + _number(len(part)) + part for kind, part in sections)


def _number(value: int) -> bytes:
    """Unsigned LEB128."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request; instants are of ``time.perf_counter``."""

    begin_s: float
    end_s: float
    status: int
    revision: str
    body: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One change that was asked for at ``begin_s`` and answered at ``end_s``."""

    begin_s: float
    end_s: float
    what: str
    before: Split
    after: Split


@dataclass(slots=True)
class Record:
    """What happened."""

    answers: list[Answer] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def failed(self) -> list[Answer]:
        """Everything that is not 200."""
        return [each for each in self.answers if each.status != 200]

    def misrouted(self) -> list[Answer]:
        """Answers of revisions that had no part of the split while the request was under way, or that lie."""
        wrong, first = [], 0
        for answer in sorted(self.answers, key=lambda each: each.begin_s):
            while first < len(self.turns) and self.turns[first].end_s < answer.begin_s:
                first += 1
            allowed: set[str] = set(self.turns[first - 1].after if first else self.turns[0].before)
            for turn in self.turns[first:]:
                if turn.begin_s > answer.end_s:
                    break
                allowed |= turn.after
            if answer.status == 200 and (answer.revision not in allowed or answer.body != answer.revision):
                wrong.append(answer)
        return wrong


class Callers:
    """Clients with one connection each, that ask again as soon as they have an answer."""

    def __init__(self, url: str, record: Record) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self._record = record

    async def ask_for_ever(self) -> None:
        """Until cancelled. A connection that breaks is a failed request."""
        begin_s = [0.0]
        while True:
            begin_s[0] = time.perf_counter()
            try:
                await self._one_connection(begin_s)
            except (OSError, EOFError, ValueError) as error:
                self._record.answers.append(Answer(begin_s[0], time.perf_counter(), 0, "", f"{error}"))
                await asyncio.sleep(0.01)

    async def _one_connection(self, begun_s: list[float]) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            while True:
                begun_s[0] = begin_s = time.perf_counter()
                writer.write(self._request)
                status, headers, body = await _read_answer(reader)
                revision = headers.get("x-corral-revision", "")
                self._record.answers.append(Answer(begin_s, time.perf_counter(), status, revision, body))
                if headers.get("connection", "") == "close":
                    return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding", "") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split(" ")[1]), headers, body.decode()


class Owner:
    """Deploys, switches, splits and rolls back at random, one change after another, and keeps what was answered."""

    def __init__(self, corral: Corral, name: str, record: Record, *, seed: int) -> None:
        self._corral = corral
        self._name = name
        self._record = record
        self._rng = random.Random(seed)
        self._revisions: list[str] = []
        self._split: Split = frozenset()
        self._number = 0

    async def begin(self) -> FunctionView:
        """The first revision."""
        await self._deploy()
        return await self._corral.functions.get(self._name)

    async def change(self) -> None:
        """One change."""
        moves: Sequence[Callable[[], Awaitable[FunctionView]]] = (self._deploy, self._switch, self._rollback)
        move = self._rng.choices(moves, weights=(1, 2, 1))[0]
        await move()

    async def _deploy(self) -> FunctionView:
        self._number += 1
        revision = f"r{self._number}"
        program = printing(revision)
        digest = Digest.of(program)
        await self._corral.blobs.write("", digest, pieces_of(program))
        request = DeployRequest(module=str(digest), default=self._rng.random() < 0.5 or None)
        begin_s = time.perf_counter()
        answer = await self._corral.functions.deploy(self._name, revision, request)
        self._revisions.append(revision)
        return self._told(begin_s, f"deploy {revision}", answer.function)

    async def _switch(self) -> FunctionView:
        known = {each.name for each in (await self._corral.functions.get(self._name)).revisions}
        there = [each for each in self._revisions[-20:] if each in known]
        begin_s = time.perf_counter()
        if len(there) > 1 and self._rng.random() < 0.3:
            first, second = self._rng.sample(there, 2)
            shares = [Share(revision=first, percent=60), Share(revision=second, percent=40)]
            answer = await self._corral.functions.split(self._name, shares)
        else:
            answer = await self._corral.functions.switch_on(self._name, self._rng.choice(there))
        return self._told(begin_s, answer.text, answer.function)

    async def _rollback(self) -> FunctionView:
        page = await self._corral.functions.history(self._name, limit=30)
        chosen = self._rng.choice(page.changes).version
        begin_s = time.perf_counter()
        answer = await self._corral.functions.rollback(self._name, chosen)
        return self._told(begin_s, f"rollback to {chosen}", answer.function)

    def _told(self, begin_s: float, what: str, function: FunctionView) -> FunctionView:
        after = frozenset(each.revision for each in function.split)
        self._record.turns.append(Turn(begin_s, time.perf_counter(), what, self._split, after))
        self._split = after
        return function


async def changed_under_load(corral: Corral, name: str, *, changes: int, callers: int, seed: int) -> Record:
    """Let ``callers`` ask while the owner makes ``changes``; what happened."""
    record = Record()
    owner = Owner(corral, name, record, seed=seed)
    function = await owner.begin()
    asking = Callers(function.urls[0], record)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(asking.ask_for_ever()) for _ in range(callers)]
        for _ in range(changes):
            await owner.change()
        for client in clients:
            client.cancel()
    return record
