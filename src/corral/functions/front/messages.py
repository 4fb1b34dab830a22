"""What a worker and its front say to each other, one JSON text a line."""

from typing import Final

import msgspec

from corral.functions.frames import Counters
from corral.functions.model import Demand
from corral.functions.routing import RoutingUpdate
from corral.functions.traces import Trace

LINE_MAX: Final = 64 * 1024**2


class ToFront(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says."""

    update: RoutingUpdate | None = None
    drain: bool = False


class FromFront(msgspec.Struct, frozen=True, kw_only=True):
    """What a front says, all of it each time.

    Attributes:
        epoch, version: of the table by which it routes.
        stale: an update is missing, send a whole one.
        counters: of components, by instance.
        traces: of requests that ended; said once.
        over: instances whose process used more processor time than their requests may; said once.
    """

    epoch: str = ""
    version: int = 0
    demands: tuple[Demand, ...] = ()
    stale: bool = False
    counters: dict[str, Counters] = {}
    traces: tuple[Trace, ...] = ()
    over: tuple[str, ...] = ()
