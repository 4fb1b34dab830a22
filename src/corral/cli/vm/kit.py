"""`corral vm kit`."""

from pathlib import Path

import msgspec
import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import print_json
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.cli.vm.wanted import WantedKit, hand_over
from corral.kernel.units import format_size
from corral.sandboxes.guest.kit import GuestKit, open_kit, verify


def kit(json: Json = False, data_dir: DataDir = "", config: ConfigFile = "", overrides: Set = None) -> None:
    """Show the kernel that this machine's virtual machines boot, and check it against its digests."""
    hand_over(WantedKit(verb="kit", json=json), data_dir=data_dir, config=config, overrides=overrides)


def carry_out(kits: Path, wanted: WantedKit) -> int:
    """The half that works."""
    found = open_kit(kits)
    verify(found)
    show(found, json=wanted.json)
    return 0


def show(found: GuestKit, *, json: bool) -> None:
    """Print a kit."""
    manifest = found.manifest
    if json:
        print_json({**msgspec.to_builtins(manifest), "digest": manifest.digest, "directory": str(found.directory)})
        return
    processors = "many processors" if manifest.processors else "one processor"
    typer.echo(f"kit        {manifest.digest}")
    typer.echo(f"kernel     {manifest.release}, {processors}, {'ACPI' if manifest.acpi else 'no ACPI'}")
    typer.echo(f"from       {manifest.source}")
    typer.echo(f"directory  {found.directory}")
    for path in (found.kernel, found.initrd):
        typer.echo(f"           {path.name}, {format_size(path.stat().st_size)}")


app = verb_app(kit)
