"""Serves an ASGI application with granian inside our own loop, on a socket that we bound ourselves.

We bind first, so that a port in use is our own clear error and port 0 tells the port before anybody is served.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.server.embed import Server

from corral.app.config_sections import HttpTls
from corral.kernel.concurrency import background
from corral.kernel.errors import InvalidSpec

_BACKLOG: Final = 1024
_PLAIN: Final = HttpTls()


class _EmbeddedServer(Server):
    """Granian's embedded server over a socket that is bound already."""

    def __init__(self, listener: socket.socket, target: Any, tls: HttpTls) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            target=target,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=_BACKLOG,
            runtime_threads=1,
            runtime_blocking_threads=1,
            log_enabled=False,
            ssl_cert=Path(tls.certificate) if tls.certificate else None,
            ssl_key=Path(tls.key) if tls.key else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(os.dup(self._listener.fileno()), False, _BACKLOG)  # type: ignore[call-arg,assignment]
        self._ssp = None


@asynccontextmanager
async def serving(
    listener: socket.socket, application: Any, *, stop_s: float, tls: HttpTls = _PLAIN
) -> AsyncIterator[None]:
    """Serve while the block runs; at its end requests in flight get ``stop_s`` to finish.

    Raises InvalidSpec when there is no such certificate, or the key is of another one.
    """
    try:
        server = _EmbeddedServer(listener, application, tls)
    except OSError as error:  # ssl.SSLError is one, too
        raise InvalidSpec(
            f"scheduler.http_tls: {tls.certificate} and {tls.key} cannot be used: {error.strerror or error}",
            field="scheduler.http_tls",
        ) from error
    async with background(server.serve(), name="http") as running:
        try:
            yield
        finally:
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({running}, timeout=stop_s)
