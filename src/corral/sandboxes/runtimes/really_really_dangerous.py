"""The runtime without walls: commands run as ordinary processes of this host. For development only.

What it still does: nothing of the worker's environment or descriptors is inherited; every box has its own folder
that stands for /work (in working directories, file paths and environment values, not inside arguments); every
descendant is killed when an exec or the box ends; groups limit memory, processes and CPU where they can be made.
What it gives up (``GIVEN_UP``) is written to the log whenever a worker opens it, and it must be named exactly.
"""

import resource
from typing import Final

from corral.kernel.errors import InvalidSpec
from corral.sandboxes.link import ResourceLimit, Setup, agent_path
from corral.sandboxes.model import Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes.box import Launch, start_box
from corral.sandboxes.runtimes.home import Home

NAME: Final = "really_really_dangerous"
GIVEN_UP: Final = (
    "no isolation: commands run on this host as the user of the worker, read and write every file that he can, "
    "see and signal his processes, use the network, and are not bounded in disk space"
)


class ReallyReallyDangerousRuntime:
    """See ``ports.Runtime``."""

    name = NAME
    about = ""

    def __init__(self, home: Home, *, start_within_s: float = 10.0) -> None:
        """Raises SandboxFailed when the agent is missing."""
        self._home = home
        self._agent = str(agent_path())
        self._start_within_s = start_within_s
        hard = home.cgroups.hard
        self.capabilities = Capabilities(
            network=True,
            shared_files=True,
            terminal=True,
            memory_limit="memory" in hard,
            process_limit="pids" in hard,
        )

    async def start(self, spec: SandboxSpec) -> Box:
        if spec.root:
            raise InvalidSpec(
                f"image: the {NAME} runtime runs on the host's own files and cannot use an image",
                cure='leave the image empty, or use the runtime "bubblewrap"',
                field="image",
            )
        folder = self._home.work / spec.id
        limits = [ResourceLimit.both(resource.RLIMIT_NOFILE, spec.size.open_files)]
        if "memory" not in self._home.cgroups.hard:
            limits.append(ResourceLimit.both(resource.RLIMIT_DATA, spec.size.memory_bytes))
        setup = Setup(writable=(str(folder),), rlimits=tuple(limits), work_path=str(folder))

        def prepare() -> Launch:
            folder.mkdir(mode=0o700)
            return Launch(argv=[self._agent], setup=setup)

        return await start_box(spec, self._home, prepare, within_s=self._start_within_s, folder=folder)

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Nothing is shared between boxes."""
