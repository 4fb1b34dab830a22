"""A child gets the descriptors that it is given in their order, whatever their numbers are here."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from corral.sandboxes.runtimes.child import Child

_TELL = "for n in 3 4 5 6; do read -r word <&$n; echo $word; done"


@pytest.fixture
def pipes() -> Iterator[dict[int, int]]:
    """Both ends of many pipes, the reading one first; numbers from 60 on."""
    with ExitStack() as stack:
        opened: dict[int, int] = {}
        while len([reader for reader in opened if reader >= 60]) < 8:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            stack.callback(os.close, writer)
            opened[reader] = writer
        yield {reader: writer for reader, writer in opened.items() if reader >= 60}


async def test_descriptors_of_any_number_arrive_in_their_order(pipes: dict[int, int]) -> None:
    for order in itertools.islice(itertools.permutations(pipes, 4), 0, 1600, 150):
        for each in order:
            os.write(pipes[each], f"{each}\n".encode())
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as said, os.fdopen(writer, "wb") as into:
            child = Child.spawn(["/bin/sh", "-c", _TELL], descriptors=(0, into.fileno(), 2, *order))
            into.close()
            words = said.read().split()
            assert await child.wait_ended(within_s=10)
        assert [int(word) for word in words] == list(order)
