"""``corral.app.launch image``: carries out one verb of ``corral image`` on this machine's images."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import msgspec
import structlog

from corral.app.config_sections import Config
from corral.app.images import make_images
from corral.app.start import read_arguments, run_process, tell
from corral.cli.image import list as list_verb
from corral.cli.image import prepare, pull, rm, show
from corral.cli.image.wanted import Wanted
from corral.images.service import Images
from corral.kernel.clock import SystemClock
from corral.kernel.errors import CorralError

VERBS: Final[Mapping[str, Callable[[Images, Wanted], Awaitable[int]]]] = {
    "pull": pull.carry_out,
    "prepare": prepare.carry_out,
    "list": list_verb.carry_out,
    "show": show.carry_out,
    "rm": rm.carry_out,
}
_INTERRUPTED: Final = 130


async def carry_out(config: Config, wanted: Wanted, stopping: asyncio.Event) -> int:
    """The verb, until it is done or the user interrupts it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with make_images(config, SystemClock()) as images, asyncio.TaskGroup() as group:
        work = group.create_task(_work(images, wanted))
        watch = group.create_task(_interrupt(stopping, work))
        await asyncio.wait({work})
        watch.cancel()
    return _INTERRUPTED if work.cancelled() else work.result()


async def _work(images: Images, wanted: Wanted) -> int:
    return await VERBS[wanted.verb](images, wanted)


async def _interrupt(stopping: asyncio.Event, work: "asyncio.Task[int]") -> None:
    await stopping.wait()
    work.cancel()


def main() -> int:
    """Exit statuses as everywhere: 0 done, 1 failed, 2 the request is wrong."""
    try:
        config, arguments = read_arguments("image", "--wanted")
        wanted = msgspec.json.decode(arguments.wanted, type=Wanted)
    except CorralError as error:
        return tell(error)
    return run_process(partial(carry_out, config, wanted))
