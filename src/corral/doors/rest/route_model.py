"""What clients send to `/routes` and what they get."""

import msgspec

from corral.compile.remote.model import WorkerRoute


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client wants to run, and what it gives back.

    Attributes:
        purpose: `compile`.
        image: the tool chain's image; "" for the workers' own root.
        slots: how many executions at once; 0 asks for nothing.
        avoid: workers that just failed; they come last.
        release: ids of routes that are not needed any more.
    """

    purpose: str = "compile"
    image: str = ""
    slots: int = 1
    avoid: tuple[str, ...] = ()
    release: tuple[str, ...] = ()


class RouteList(msgspec.Struct, frozen=True, kw_only=True):
    """The routes that were given."""

    routes: tuple[WorkerRoute, ...] = ()
