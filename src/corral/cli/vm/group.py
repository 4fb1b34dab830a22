"""The table of `corral vm`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "build-kit": Verb("corral.cli.vm.build_kit", "Make the kernel that this machine's virtual machines boot."),
        "kit": Verb("corral.cli.vm.kit", "Show the kernel that this machine's virtual machines boot."),
    },
    "What virtual machines of the runtimes qemu and firecracker are made of.",
)
