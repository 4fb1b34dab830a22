"""The trace of one request while it is at the front, and how many a revision may have."""

import secrets
import time
from collections.abc import Callable
from typing import Final

from corral.functions.front.cgi import Asking
from corral.functions.model import RevisionKey
from corral.functions.traces import Parent, Trace, steps, traceparent

_PATH_MAX: Final = 500


class Tracing:
    """Made when the request is routed; ``finish`` gives the trace to ``keep``, once."""

    __slots__ = (
        "_ask",
        "_at_s",
        "_began_s",
        "_instance",
        "_keep",
        "_key",
        "_parent",
        "_routed_s",
        "_span",
        "_start_s",
        "_trace",
    )

    def __init__(self, ask: Asking, key: RevisionKey, keep: Callable[[Trace], None]) -> None:
        parent = ask.said.parent
        self._ask, self._key, self._keep, self._parent = ask, key, keep, parent
        self._trace = parent.trace_id if parent is not None else secrets.token_hex(16)
        self._span = secrets.token_hex(8)
        self._start_s, self._at_s = ask.came_s, time.clock_gettime(time.CLOCK_REALTIME)
        self._routed_s = time.perf_counter() - ask.came_s
        self._at_s -= self._routed_s
        self._began_s, self._instance = -1.0, ""
        ask.traceparent = traceparent(self._trace, self._span)

    @property
    def trace_id(self) -> str:
        return self._trace

    def began(self, instance: str) -> None:
        """It was given to an instance; at another try, again."""
        self._began_s, self._instance = time.perf_counter() - self._start_s, instance

    def finish(self, status: int, *, instantiate_s: float, cold: bool) -> None:
        """It is over."""
        ended_s = time.perf_counter() - self._start_s
        self._keep(
            Trace(
                trace_id=self._trace,
                span_id=self._span,
                parent_id=self._parent.span_id if isinstance(self._parent, Parent) else "",
                key=self._key,
                request_id=self._ask.request_id.decode("ascii", "replace"),
                instance=self._instance,
                method=self._ask.method.decode("ascii", "replace"),
                path=self._ask.target[:_PATH_MAX].decode("latin-1"),
                status=status,
                cold=cold,
                at_s=self._at_s,
                duration_s=ended_s,
                spans=steps(
                    routed_s=self._routed_s, began_s=self._began_s, instantiate_s=instantiate_s, ended_s=ended_s
                ),
            )
        )
