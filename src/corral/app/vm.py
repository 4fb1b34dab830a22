"""``corral.app.launch vm``: carries out one verb of ``corral vm`` on this machine's guest kits."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from corral.app.start import read_arguments, tell
from corral.cli.vm import build_kit, kit
from corral.cli.vm.wanted import WantedKit
from corral.kernel.errors import CorralError

VERBS: Final[Mapping[str, Callable[[Path, WantedKit], int]]] = {
    "build-kit": build_kit.carry_out,
    "kit": kit.carry_out,
}
_INTERRUPTED: Final = 130


def main() -> int:
    """Exit statuses as everywhere: 0 done, 1 failed, 2 the request is wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: a build cleans up behind itself
    try:
        config, arguments = read_arguments("vm", "--wanted")
        wanted = msgspec.json.decode(arguments.wanted, type=WantedKit)
        kits = Path(config.runtimes.kits) if config.runtimes.kits else config.data / "guest"
        return VERBS[wanted.verb](kits, wanted)
    except CorralError as error:
        return tell(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
