"""Server-sent events (WHATWG HTML, section 9.2), the few lines that we need of them."""

from typing import Any, Final

from litestar import Request

from corral.kernel.errors import InvalidSpec

EVENT_STREAM: Final = "text/event-stream"
NO_BUFFERING: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(name: str, data: bytes, *, id_: str = "") -> bytes:
    """One event; ``data`` is JSON in one line."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + data + b"\n\n"


def comment(text: str) -> bytes:
    """A line that readers ignore; keeps idle connections alive and opens the stream at once."""
    return f": {text}\n\n".encode()


def last_event_id(request: Request[Any, Any, Any], *, default: int) -> int:
    """Where a reconnecting EventSource stopped. Raises InvalidSpec when it is not a number of ours."""
    header = request.headers.get("last-event-id", "")
    if not header:
        return default
    if not header.isdigit() or len(header) > 18:
        raise InvalidSpec("Last-Event-ID: is not one that this stream gave", field="last-event-id")
    return int(header)
