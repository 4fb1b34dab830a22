"""A sandbox without walls, for tests of the agent and its link: the agent as an ordinary child of the test."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from typing import Final

from corral.sandboxes.link import Link, Setup, agent_path
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.ports import LimitEvents
from corral.sandboxes.sandbox import Sandbox

_END_WITHIN_S: Final = 15.0


class BareBox:
    """The box of an agent that runs directly on the host."""

    def __init__(self, link: Link, agent: subprocess.Popen[bytes]) -> None:
        self.spec = SandboxSpec(id="sbx_bare", tenant="test")
        self.link = link
        self.agent = agent
        self.events = LimitEvents()

    def limit_events_nowait(self) -> LimitEvents:
        return self.events

    async def stop(self) -> None:
        self.link.close()
        await asyncio.to_thread(self.agent.wait, _END_WITHIN_S)


def start_agent() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """An agent and our end of its stream. The caller closes the stream, then waits for the agent."""
    ours, theirs = socket.socketpair()
    with theirs:
        return ours, subprocess.Popen([agent_path()], stdin=theirs.fileno())


@contextlib.asynccontextmanager
async def bare_sandbox(setup: Setup | None = None) -> AsyncIterator[tuple[Sandbox, BareBox]]:
    """A sandbox on a bare agent, stopped at the end."""
    ours, agent = start_agent()
    try:
        link = await Link.open(ours, setup or Setup(grace_s=0.2))
    except BaseException:
        agent.wait(_END_WITHIN_S)
        raise
    box = BareBox(link, agent)
    try:
        yield Sandbox(box), box
    finally:
        await box.stop()
