"""What an exchange and whoever runs its request say to each other."""

from typing import Protocol

from corral.functions.frames import Ended
from corral.functions.front.cgi import AnswerHead, Asking
from corral.functions.model import Limits, RevisionKey


class Sink(Protocol):
    """The side that waits for an answer. Called on the event loop, in this order: answer, data…, ended or lost."""

    def answer(self, head: AnswerHead) -> None:
        """The head of the answer."""
        ...

    def data(self, data: bytes) -> None:
        """A part of its body."""
        ...

    def flush(self) -> None:
        """Nothing more is here at the moment: what was given should leave."""
        ...

    def ended(self, end: Ended, trouble: str = "") -> None:
        """Nothing follows. ``trouble`` says what was wrong with what the program printed."""
        ...

    def lost(self) -> None:
        """The instance went away before the end."""
        ...

    def room(self, count: int) -> None:
        """``count`` more bytes of the request's body may be sent."""
        ...


class Stream(Protocol):
    """A request on its way in an instance."""

    def send(self, data: bytes, *, last: bool) -> None:
        """A part of the body; the sender keeps to the room that it was given."""
        ...

    def took(self, count: int) -> None:
        """``count`` bytes of the answer have left, so that as many more may come."""
        ...

    def cancel(self) -> None:
        """Nobody waits any more. No call of the sink follows."""
        ...


class Upstream(Protocol):
    """Where requests for the instances behind one address go."""

    first_room: int

    def open(
        self,
        sink: Sink,
        *,
        instance: str,
        key: RevisionKey,
        limits: Limits,
        ask: Asking,
        has_body: bool,
    ) -> Stream:
        """Begin. A connection that cannot be made ends in ``lost``."""
        ...

    def close(self) -> None:
        """No more requests will come; those that are on their way go on."""
        ...
