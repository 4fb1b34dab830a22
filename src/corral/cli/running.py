"""From a synchronous command to the asynchronous client, with one meaning of Ctrl-C, SIGTERM and a closed terminal."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from corral.cli.output import leave_unread
from corral.client import Corral

T = TypeVar("T")


def with_client(url: str, work: Callable[[Corral], Awaitable[T]]) -> T:
    """Open a client, do the work, close it.

    A signal that ends programs cancels the work, and so does a reader of our output that leaves. Afterwards
    KeyboardInterrupt is raised for Ctrl-C, and for the others typer.Exit with the status that a shell would report.
    """
    stopped_by: list[signal.Signals] = []

    async def session() -> T:
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None

        def stop(number: signal.Signals) -> None:
            stopped_by.append(number)
            this.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, stop, number)
        async with Corral(url) as corral:
            return await work(corral)

    try:
        return asyncio.run(session())
    except BrokenPipeError:
        raise typer.Exit(leave_unread()) from None
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        raise typer.Exit(128 + stopped_by[0]) from None
