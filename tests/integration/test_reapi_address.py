"""Where the door for Bazel listens, and when it stays closed."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from unittest.mock import Mock

import grpc
import pytest

from corral.app.reapi import open_reapi
from corral.blobs.adapters.memory import MemoryBlobs
from corral.doors.reapi.config import ReapiConfig
from corral.doors.reapi.server import serving
from corral.doors.reapi.services import Services
from corral.kernel.clock import SystemClock
from corral.kernel.errors import Conflict, InvalidSpec
from corral.testing.processes import free_ports


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[str]:
    services = Services(
        identities=Mock(),
        blobs=MemoryBlobs(),
        cache=Mock(),
        clock=SystemClock(),
        blob_bytes=1024,
        config=ReapiConfig(address=address),
    )
    async with open_reapi(services, partial(serving, actions=Mock())) as found:
        yield found


async def answers(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()


@pytest.fixture
def default_address(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that nobody has, in the place of the real one, which any Corral of this machine may have."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setattr("corral.app.reapi.DEFAULT_ADDRESS", address)
    return address


async def test_the_default_address_is_taken_when_it_is_free(default_address: str) -> None:
    async with opened("") as address:
        assert address == default_address
        await answers(address)


async def test_a_second_corral_starts_without_the_door(default_address: str) -> None:
    async with opened("") as first, opened("") as second:
        assert (first, second) == (default_address, "")


async def test_a_configured_address_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(Conflict, match="in use"):
            async with opened(f"127.0.0.1:{taken.getsockname()[1]}"):
                pass


async def test_port_0_takes_a_free_one_and_off_closes_the_door() -> None:
    async with opened("127.0.0.1:0") as address, opened("off") as none:
        assert none == ""
        await answers(address)


async def test_plain_text_is_for_loopback_only() -> None:
    with pytest.raises(InvalidSpec, match="can be reached from other machines") as refused:
        async with opened("0.0.0.0:0"):
            pass

    assert "reapi.tls.certificate" in refused.value.cure
