"""How many runs a worker claims beyond its free slots, so that short ones do not wait for the way to the scheduler."""

from collections import deque


class Pace:
    """As many runs may be claimed ahead as ended within the last ``window_s`` seconds: so many will end in the next.

    A worker whose runs take longer than that claims none ahead: what waits here could run elsewhere.
    """

    def __init__(self, *, window_s: float, most: int) -> None:
        self._window_s = window_s
        self._ends_s: deque[float] = deque(maxlen=most)

    def ended(self, now_s: float) -> None:
        """A run ended."""
        self._ends_s.append(now_s)

    def room(self, now_s: float, *, waiting: int) -> int:
        """How many runs to claim ahead now, when so many wait already; at most ``most``.

        None until half of them have begun: a claim costs the way to the scheduler and a transaction there, however
        few it asks for, and one that asks for few leaves the slots empty while the next is under way.
        """
        while self._ends_s and self._ends_s[0] <= now_s - self._window_s:
            self._ends_s.popleft()
        ahead = len(self._ends_s)
        return ahead - waiting if waiting * 2 <= ahead else 0
