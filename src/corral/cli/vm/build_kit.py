"""`corral vm build-kit`."""

from pathlib import Path
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import note
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.cli.vm.kit import show
from corral.cli.vm.wanted import WantedKit, hand_over
from corral.kernel.errors import InvalidSpec
from corral.sandboxes.guest.build import build_from_kernel, build_from_package, download_package
from corral.sandboxes.guest.kit import GuestKit
from corral.sandboxes.guest.micro import build_micro
from corral.sandboxes.guest.workspace import workspace

Package = Annotated[
    Path | None, typer.Option("--package", help="A Debian kernel package that is here already; else apt gets one.")
]
Kernel = Annotated[
    Path | None,
    typer.Option("--kernel", help="A kernel of your own (bzImage or ELF), with all that is needed built in."),
]
Acpi = Annotated[bool, typer.Option("--acpi/--no-acpi", help="With --kernel: it finds its devices through ACPI.")]
Many = Annotated[bool, typer.Option("--smp/--no-smp", help="With --kernel: it runs more than one processor.")]
Micro = Annotated[
    bool, typer.Option("--micro", help="Compile a small kernel from Debian's source: boots faster, takes minutes.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def build_kit(
    package: Package = None,
    kernel: Kernel = None,
    acpi: Acpi = True,
    smp: Many = True,
    micro: Micro = False,
    quiet: Quiet = False,
    json: Json = False,
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Make the kernel that virtual machines boot, and keep it in the data directory under its digest.

    Without options it is Debian's cloud kernel. Workers use the kit that was made last, from their next start on.
    """
    if kernel and (package or micro):
        raise InvalidSpec("--kernel goes with neither --package nor --micro")
    wanted = WantedKit(
        verb="build-kit",
        package=str(package.absolute()) if package else "",
        kernel=str(kernel.absolute()) if kernel else "",
        acpi=acpi,
        processors=smp,
        micro=micro,
        json=json,
        quiet=quiet,
    )
    hand_over(wanted, data_dir=data_dir, config=config, overrides=overrides)


def carry_out(kits: Path, wanted: WantedKit) -> int:
    """The half that works."""
    show(_built(kits, wanted), json=wanted.json)
    return 0


def _built(kits: Path, wanted: WantedKit) -> GuestKit:
    def tell(what: str) -> None:
        if not (wanted.quiet or wanted.json):
            note("", what)

    package = Path(wanted.package) if wanted.package else None
    if wanted.kernel:
        kernel = Path(wanted.kernel)
        return build_from_kernel(
            kernel, kits, source=kernel.name, acpi=wanted.acpi, processors=wanted.processors, tell=tell
        )
    with workspace(kits) as work:
        if wanted.micro:
            return build_micro(work, kits, package=package, tell=tell)
        return build_from_package(package or download_package(work.folder, tell=tell), kits, tell=tell)


app = verb_app(build_kit)
