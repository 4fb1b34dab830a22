"""The link: the host's end of the byte stream to a sandbox's agent, the same for every runtime."""

from corral.sandboxes.link.binary import agent_path
from corral.sandboxes.link.link import Link
from corral.sandboxes.link.setup import Reseed, ResourceLimit, Setup, TmpfsMount

__all__ = ["Link", "Reseed", "ResourceLimit", "Setup", "TmpfsMount", "agent_path"]
