"""The front's own answers: problem+json, one clear sentence, and never anything of a program's insides."""

import itertools
from http import HTTPStatus
from typing import Final

import msgspec

from corral.functions.frames import Ended, Outcome
from corral.functions.front.cgi import AnswerHead, Header
from corral.kernel.ids import new_token

MEDIA_TYPE: Final = b"application/problem+json"
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_OUTCOMES: Final[dict[Outcome, tuple[int, str, str]]] = {
    Outcome.EXIT: (502, "program-exited", "the function ended with an exit status that is not 0"),
    Outcome.TRAP: (502, "trap", "the function trapped; its owner finds the backtrace in its log"),
    Outcome.WALL: (504, "deadline-exceeded", "the function did not answer within its time"),
    Outcome.CPU: (504, "cpu-exceeded", "the function used more processor time than it may"),
    Outcome.FUEL: (502, "fuel-exhausted", "the function executed more instructions than it may"),
    Outcome.MEMORY: (502, "memory-exceeded", "the function needs more memory, or larger tables, than it may have"),
    Outcome.STACK: (502, "stack-exhausted", "the function used more stack than it has; its owner finds the backtrace"),
    Outcome.OUTPUT: (502, "response-too-large", "the function answered with more bytes than it may"),
    Outcome.CANCELED: (502, "canceled", "the request was canceled"),
    Outcome.UNKNOWN: (503, "instance-lost", "the function's instance went away; try again"),
    Outcome.BUSY: (503, "instance-busy", "the function's instance is full; try again"),
    Outcome.BROKEN: (502, "bad-program", "the function's program gave no answer; its owner finds why in its log"),
}


_process: Final = new_token()[:10].encode()
_numbers: Final = itertools.count(1)


def new_request_id() -> bytes:
    """The id of a request that came without one: of this process, and of its requests."""
    return b"req_%b%010x" % (_process, next(_numbers))


def reason_of(status: int) -> bytes:
    """The phrase of a status line."""
    return _REASONS.get(status, b"Status")


def problem(
    status: int, code: str, detail: str, request_id: bytes, *, retry_after_s: int = 0
) -> tuple[AnswerHead, bytes]:
    """Head and body of an answer that the front gives itself."""
    body = msgspec.json.encode(
        {
            "type": f"urn:corral:error:{code}",
            "title": reason_of(status).decode(),
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": request_id.decode("ascii", "replace"),
        }
    )
    headers: list[Header] = [(b"content-type", MEDIA_TYPE)]
    if retry_after_s or status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, retry_after_s)))
    return AnswerHead(status, reason_of(status), tuple(headers), len(body)), body


def of_outcome(end: Ended, trouble: str) -> tuple[int, str, str]:
    """Status, code and sentence for a call that gave no answer. ``trouble`` is not told: it quotes the program."""
    if end.outcome is Outcome.OK:
        return _OUTCOMES[Outcome.BROKEN]
    return _OUTCOMES[end.outcome]
