"""What a verb of `corral image` is asked, on its way from the command line to the process that opens the images."""

from collections.abc import Sequence

import msgspec

from corral.cli.processes import start


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of one verb."""

    verb: str
    names: tuple[str, ...] = ()
    pin: bool = False
    machines: bool = False
    json: bool = False
    quiet: bool = False


def hand_over(wanted: Wanted, *, data_dir: str, config: str, overrides: Sequence[str] | None) -> None:
    """Become the process that carries it out."""
    asked = msgspec.json.encode(wanted).decode()
    start("image", {"data_dir": data_dir}, config=config, overrides=list(overrides or []), extra={"--wanted": asked})
