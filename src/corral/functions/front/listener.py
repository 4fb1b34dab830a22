"""New connections, accepted in a lane: whoever opens many at once must not hold up those who are here."""

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from typing import Final

from corral.functions.front.lanes import Lane

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_AGAIN_S: Final = 1.0


class Listener:
    """``accepted`` gets each connection, not blocking, with the address and port of the other side."""

    def __init__(
        self, listening: socket.socket, lane: Lane, accepted: Callable[[socket.socket, tuple[str, int]], object]
    ) -> None:
        listening.setblocking(False)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # those that it accepts have it from it
        self._loop = asyncio.get_running_loop()
        self._listening, self._lane, self._accepted = listening, lane, accepted
        self._open = True
        self._listen()

    def close(self) -> None:
        """Accept no more; the socket is closed."""
        if self._open:
            self._open = False
            self._lane.watch(self._listening.fileno(), self, 0)
            self._listening.close()

    def happened(self, _: int) -> None:
        """Somebody connects."""
        try:
            connection, peer = self._listening.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:  # it stays readable: look again when others have left
                self._lane.watch(self._listening.fileno(), self, 0)
                self._loop.call_later(_AGAIN_S, self._listen)
            return  # or nobody is there any more
        connection.setblocking(False)
        self._accepted(connection, (str(peer[0]), int(peer[1])))

    def flush(self) -> None:
        """It writes nothing."""

    def _listen(self) -> None:
        if self._open:
            self._lane.watch(self._listening.fileno(), self, select.EPOLLIN)
