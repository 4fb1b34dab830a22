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

    def ahead(self, now_s: float) -> int:
        """How many runs may be claimed ahead now; at most ``most``."""
        while self._ends_s and self._ends_s[0] <= now_s - self._window_s:
            self._ends_s.popleft()
        return len(self._ends_s)
