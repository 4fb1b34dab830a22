"""Lanes: what one tenant wants of a front never keeps another one's work waiting for long."""

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corral.functions import frames
from corral.functions.front.cgi import AnswerHead, Asking, said
from corral.functions.front.flow import Flow
from corral.functions.front.host_link import HostLink
from corral.functions.front.lanes import Lane, Lanes
from corral.functions.model import FunctionKey, Limits, RevisionKey

KEY = RevisionKey(FunctionKey("a", "hello"), "v1", "0" * 16)


class Clock:
    """Each piece of work takes as long as it says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Asker:
    """A socket that is always readable; each time costs ``cost_s``."""

    def __init__(self, clock: Clock, seen: list[str], name: str, cost_s: float) -> None:
        self._clock, self._seen, self._name, self._cost_s = clock, seen, name, cost_s
        self.socket, self._other = socket.socketpair()
        self._other.send(b"x")

    def happened(self, _: int) -> None:
        self._seen.append(self._name)
        self._clock.now_s += self._cost_s

    def flush(self) -> None:
        """It writes nothing."""

    def close(self) -> None:
        self.socket.close()
        self._other.close()


@contextmanager
def asking(lanes: Lanes, clock: Clock, seen: list[str], who: dict[str, int]) -> Iterator[None]:
    """``who``: how many sockets of each tenant are readable all the time."""
    askers = [
        (lanes.of(tenant), Asker(clock, seen, tenant, 0.001)) for tenant, count in who.items() for _ in range(count)
    ]
    for lane, asker in askers:
        lane.enter()
        lane.watch(asker.socket.fileno(), asker, select.EPOLLIN)
    try:
        yield
    finally:
        for lane, asker in askers:
            lane.watch(asker.socket.fileno(), asker, 0)
            lane.leave()
            asker.close()
        lanes.keep(set())


async def turns(done: Callable[[], bool]) -> None:
    """Turns of the loop until it is done."""
    while not done():  # noqa: ASYNC110 (it counts turns)
        await asyncio.sleep(0)


async def test_a_tenant_with_many_sockets_has_a_short_turn_and_then_the_others_have_theirs() -> None:
    clock, seen = Clock(), list[str]()
    lanes = Lanes(0.004, clock=clock)

    with asking(lanes, clock, seen, {"crowd": 200, "one": 1}):
        await turns(lambda: seen.count("one") >= 10)

    longest = max(map(len, "".join("x" if each == "crowd" else " " for each in seen).split()))
    assert longest <= 8  # two turns of four pieces: one turn may end just before the other tenant's first


async def test_lanes_that_want_more_than_their_turn_share_it() -> None:
    clock, seen = Clock(), list[str]()
    lanes = Lanes(0.008, clock=clock)

    with asking(lanes, clock, seen, {"a": 50, "b": 50, "c": 50, "d": 50}):
        await turns(lambda: lanes.full == 4)
        del seen[:]
        await turns(lambda: len(seen) >= 80)

    assert max(seen.count(name) for name in "abcd") < 3 * min(seen.count(name) for name in "abcd")
    assert lanes.full == 4


async def test_each_socket_of_a_busy_tenant_has_its_turn() -> None:
    clock, seen = Clock(), list[str]()
    lanes = Lanes(0.0005, clock=clock)  # one piece is more than a turn
    lane, told = lanes.of("a"), set[int]()
    pairs = [socket.socketpair() for _ in range(100)]

    class Told:
        def __init__(self, number: int) -> None:
            self.number = number

        def happened(self, _: int) -> None:
            told.add(self.number)
            clock.now_s += 0.001

        def flush(self) -> None:
            """It writes nothing."""

    for number, (ours, theirs) in enumerate(pairs):
        theirs.send(b"x")
        lane.watch(ours.fileno(), Told(number), select.EPOLLIN)
    await turns(lambda: len(told) == len(pairs))

    assert not seen
    for ours, theirs in pairs:
        lane.watch(ours.fileno(), Told(0), 0)
        ours.close()
        theirs.close()
    lanes.keep(set())


async def test_what_is_put_off_is_done_before_anything_new() -> None:
    clock, seen = Clock(), list[str]()
    lanes = Lanes(0.001, clock=clock)

    with asking(lanes, clock, seen, {"a": 3}):
        lanes.of("a").put_off(lambda: seen.append("rest"))
        await turns(lambda: len(seen) >= 4)

    assert seen[0] == "rest"


async def test_outside_of_its_turn_a_lane_wants_everything_put_off() -> None:
    lane = Lanes(1.0).of("a")

    assert lane.over
    lane.close()


async def test_work_that_fails_does_not_stop_its_lane(caplog: pytest.LogCaptureFixture) -> None:
    clock, seen = Clock(), list[str]()
    lanes = Lanes(0.001, clock=clock)
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: seen.append(type(context["exception"]).__name__)
    )

    def fail() -> None:
        raise ZeroDivisionError

    with asking(lanes, clock, seen, {"a": 1}):
        lanes.of("a").put_off(fail)
        await turns(lambda: "a" in seen)

    assert "ZeroDivisionError" in seen


async def test_a_lane_is_freed_when_nobody_has_a_socket_in_it() -> None:
    lanes = Lanes(0.001)
    lane = lanes.of("a")
    ours, theirs = socket.socketpair()
    flow = quiet(ours, lane)

    lanes.keep(set())
    assert lanes.of("a") is lane
    flow.close()
    lanes.keep(set())

    assert lanes.of("a") is not lane
    theirs.close()
    lanes.keep(set())


async def test_a_flow_that_moves_is_heard_in_its_new_lane() -> None:
    lanes = Lanes(0.001)
    ours, theirs = socket.socketpair()
    got = list[bytes]()
    flow = quiet(ours, lanes.of("a"), received=got.append)

    flow.move(lanes.of("b"))
    lanes.keep(set())
    theirs.send(b"hello")
    await turns(lambda: bool(got))

    assert got == [b"hello"]
    assert flow.lane is lanes.of("b")
    flow.close()
    theirs.close()
    lanes.keep(set())


async def test_a_flow_tells_when_the_other_side_is_slow_and_when_it_has_caught_up() -> None:
    lanes = Lanes(0.001)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    full, got = list[bool](), 0
    ours.setblocking(False)
    flow = Flow(ours, lanes.of("a"), received=lambda _: None, broken=lambda: None, full=full.append)

    for _ in range(64):
        flow.write(bytes(64 * 1024))
    told = list(full)
    while got < 64 * 64 * 1024:
        await asyncio.sleep(0)
        try:
            got += len(theirs.recv(1 << 20))
        except BlockingIOError:
            continue

    assert (told, full) == ([True], [True, False])
    flow.close()
    theirs.close()
    lanes.keep(set())


async def test_the_end_comes_after_all_that_was_written() -> None:
    lanes = Lanes(0.001)
    ours, theirs = socket.socketpair()
    broken = list[bool]()
    ours.setblocking(False)
    flow = Flow(ours, lanes.of("a"), received=lambda _: None, broken=lambda: broken.append(True))

    flow.write(b"last words")
    flow.finish()
    flow.finish()
    await turns(lambda: bool(broken))

    assert theirs.recv(100) == b"last words"
    assert theirs.recv(100) == b""
    assert broken == [True]
    theirs.close()
    lanes.keep(set())


def quiet(connection: socket.socket, lane: Lane, received: Callable[[bytes], None] = lambda _: None) -> Flow:
    connection.setblocking(False)
    return Flow(connection, lane, received=received, broken=lambda: None)


class Answered:
    """A sink that writes down the order of what it hears."""

    def __init__(self, name: str, heard: list[str]) -> None:
        self._name, self._heard = name, heard

    def answer(self, head: AnswerHead) -> None:
        self._heard.append(f"{self._name} {head.status}")

    def data(self, data: bytes) -> None:
        self._heard.append(f"{self._name} {data.decode()}")

    def flush(self) -> None:
        self._heard.append(f"{self._name} flush")

    def ended(self, end: frames.Ended, trouble: str = "") -> None:
        self._heard.append(f"{self._name} ended")

    def lost(self) -> None:
        self._heard.append(f"{self._name} lost")

    def room(self, count: int) -> None:
        self._heard.append(f"{self._name} room")


async def test_answers_that_came_together_stay_whole_when_they_take_more_than_a_turn(tmp_path: Path) -> None:
    lanes, heard = Lanes(0.0), list[str]()  # every frame is more than a turn
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "host"))
    listening.listen()
    link = HostLink(str(tmp_path / "host"), lanes.of("a"))
    known = said([(b"host", b"a")], peer=("192.0.2.1", 4711), port=8080, version=b"1.1")
    assert known is not None
    ask = Asking(b"GET", b"/functions/f/", b"1.1", known, b"", b"/functions/f", b"/", "192.0.2.1", b"req_1")
    for name in "xyz":
        link.open(Answered(name, heard), instance="fni_1", key=KEY, limits=Limits(), ask=ask, has_body=False)
    host, _ = listening.accept()

    printed = b"Content-Type: text/plain\n\nhello"
    end = struct.pack("<B3xI4Q", frames.Outcome.OK, 0, 0, 0, 0, 0)
    host.send(b"".join(frames.frame(frames.OUT, n, printed) + frames.frame(frames.END, n, end) for n in (1, 2, 3)))
    await turns(lambda: "z ended" in heard)

    assert heard == [f"{name} {what}" for name in "xyz" for what in ("200", "hello", "ended")]
    link.close()
    host.close()
    listening.close()
    lanes.keep(set())
