"""How the command line speaks to a running daemon: one question, one answer, over the wrappers' socket."""

import os
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from corral.compile import frames
from corral.compile.rendezvous import SOCKET, TOKEN, directory
from corral.kernel.errors import DependencyError

_ANSWER_S: Final = 60.0


def tell(environment: Mapping[str, str], word: str) -> dict[str, object] | None:
    """Ask this user's daemon to do ``word``; None when there is none.

    Raises:
        DependencyError: it is there and does not answer, or does not know the word.
    """
    private = directory(environment, os.geteuid())
    try:
        descriptor = os.open(private, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        token = (private / TOKEN).read_bytes()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET}")
            connection.sendall(frames.control(token, msgspec.json.encode({"do": word})))
            answer = _receive(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, frames.MalformedFrame) as error:
        raise DependencyError(
            f"the compile daemon in {private} does not answer: {error}", cure="kill it; the next compile starts another"
        ) from error
    finally:
        os.close(descriptor)
    if "error" in answer:
        raise DependencyError(str(answer["error"]), cure="`corral cc stop` ends a daemon of another version")
    return answer


def _receive(connection: socket.socket) -> dict[str, object]:
    length = frames.frame_length(_exactly(connection, 4))
    return msgspec.json.decode(_exactly(connection, length), type=dict[str, object])


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise frames.MalformedFrame("it hung up")
        received += piece
    return bytes(received)
