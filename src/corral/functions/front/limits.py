"""The limits of a front, which hold for all functions together; those of one are in its revision."""

import msgspec


class FrontConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front of a worker. Times are in seconds.

    Attributes:
        listen: ``HOST:PORT``; port 0 takes a free one.
        public: ``HOST`` or ``HOST:PORT`` under which the fronts of other workers reach this one, over plain HTTP;
            "" when there are none on other machines.
        connections: open at once; more are closed at once with 503.
        head_bytes: of a request's line and headers; more is 431.
        headers: in one request; more is 431.
        head_s: how long the head of a request may take; passed: 408.
        idle_s: how long a connection is kept without a request.
        pipelined: requests that one connection may send ahead.
        replay_bytes: of a body that are kept, so that a request can be sent to another instance.
        turn_us: of each turn of its loop, how many microseconds the front may work for one tenant; what is left waits
            for the next.
        drain_s: how long requests may end when the front stops.
    """

    listen: str = "127.0.0.1:7080"
    public: str = ""
    connections: int = 10_000
    head_bytes: int = 64 * 1024
    headers: int = 200
    head_s: float = 10.0
    idle_s: float = 75.0
    pipelined: int = 8
    replay_bytes: int = 64 * 1024
    turn_us: int = 50
    drain_s: float = 10.0

    def public_address(self, port: int) -> str:
        """``HOST:PORT`` for other fronts, or ""; ``port`` is the one that is listened on."""
        bare = not self.public or self.public.rpartition(":")[2].isdigit() or self.public.endswith("]:")
        return self.public if bare else f"{self.public}:{port}"
