"""The moment between the end of a gRPC call and whoever reads it hearing of that, in which others still write."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from grpc.aio._call import StreamStreamCall


@contextmanager
def late_writes() -> Iterator[asyncio.Event]:
    """While the block runs, every write to a stream waits until its call has ended, and readers until it was tried.

    Gives what is set when a write has begun.
    """
    read, write = StreamStreamCall.read, StreamStreamCall.write
    begun, tried = asyncio.Event(), asyncio.Event()

    async def write_late(call: Any, message: Any) -> None:
        begun.set()
        await call.code()  # it has ended now
        tried.set()
        await write(call, message)

    async def read_later(call: Any) -> Any:
        await tried.wait()
        return await read(call)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamStreamCall, "write", write_late)
        patched.setattr(StreamStreamCall, "read", read_later)
        yield begun
