"""The front of another worker, for instances that are there. It is told not to pass the request on again."""

import errno
import socket
from typing import Final

from corral.functions.front.cgi import HOP, Asking, Header, forwarding_headers
from corral.functions.front.http_link import Connected, HttpLink
from corral.functions.front.lanes import Lanes
from corral.functions.model import RevisionKey


class PeerLink(HttpLink):
    """At ``HOST:PORT``."""

    patience_s: Final = 10.0  # type: ignore[misc] # longer than the peer itself waits

    def __init__(self, address: str, lanes: Lanes) -> None:
        super().__init__(lanes)
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))

    def connect(self, then: Connected) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.connect_ex(self._address) in (0, errno.EINPROGRESS):
            then(connection)
        else:
            connection.close()
            then(None)

    def head(self, ask: Asking, key: RevisionKey) -> tuple[bytes, list[Header]]:
        names = (key.function.tenant.encode(), key.function.name.encode(), key.revision.encode())
        target = b"/tenants/%b/functions/%b@%b" % names + ask.path + (b"?" + ask.query if ask.query else b"")
        return b"%b %b HTTP/1.1\r\n" % (ask.method, target), [*forwarding_headers(ask), (HOP, b"1")]
