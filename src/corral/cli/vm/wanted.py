"""What a verb of `corral vm` is asked, on its way to the process that knows where the kits lie."""

from collections.abc import Sequence

import msgspec

from corral.cli.processes import start


class WantedKit(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of one verb. Paths are absolute."""

    verb: str
    package: str = ""
    kernel: str = ""
    acpi: bool = True
    processors: bool = True
    micro: bool = False
    json: bool = False
    quiet: bool = False


def hand_over(wanted: WantedKit, *, data_dir: str, config: str, overrides: Sequence[str] | None) -> None:
    """Become the process that carries it out."""
    asked = msgspec.json.encode(wanted).decode()
    start("vm", {"data_dir": data_dir}, config=config, overrides=list(overrides or []), extra={"--wanted": asked})
