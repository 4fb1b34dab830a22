"""A client with one connection that asks at a steady pace, so that it never waits for itself; a process of its own.

`python -m bench.paced_client HOST PORT PATH RATE SECONDS` prints p50 and p99 in seconds, and how many answers were not
200.
"""

import os
import socket
import sys
import time
from contextlib import suppress


def ask(host: str, port: int, path: str, rate: float, seconds: float) -> tuple[float, float, int]:
    """Latencies from sending to the last byte; a request that is late because of the one before is sent at once."""
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    took, failed, start_s = [], 0, time.perf_counter()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, start_s + number / rate - time.perf_counter()))
        sent_s = time.perf_counter()
        connection.sendall(request)
        failed += not _answer(connection).startswith(b"HTTP/1.1 200 ")
        took.append(time.perf_counter() - sent_s)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100], failed


def _answer(connection: socket.socket) -> bytes:
    """One answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    left = int(length.split(b":")[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(left))
    return head


if __name__ == "__main__":
    # It stands for a client elsewhere: it must not wait for a processor behind the attacker's client.
    with suppress(PermissionError):
        os.nice(-10)
    print(*ask(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), float(sys.argv[5])))
