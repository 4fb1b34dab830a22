"""Which pool a run takes its sandbox from, and what this worker's policy refuses. Pure."""

from typing import Final

from corral.sandboxes.model import Size
from corral.sandboxes.pool_model import PoolKey
from corral.tasks.core_fields import CoreFields, refuse
from corral.tasks.paths import printable
from corral.tasks.ports import Claim
from corral.tasks.run_config import RunConfig

_SIZE_NAMES: Final = {
    "memory_bytes": "memory",
    "cpus": "cpus",
    "processes": "processes",
    "files": "files",
    "disk_bytes": "disk",
}


def pool_key(claim: Claim, core: CoreFields, config: RunConfig, *, runtime: str) -> PoolKey:
    """The pool for a run; ``runtime`` is for a task that names none.

    Raises InvalidSpec with everything that the worker's policy refuses.
    """
    size = core.resources.size(config.size.size())
    refuse([*_root_mistakes(core.root, config), *_size_mistakes(size, config), *_network_mistakes(core, config)])
    return PoolKey(
        tenant=claim.tenant,
        root=core.root,
        runtime=claim.definition.runtime or runtime,
        size=size,
        network=core.network,
    )


def _root_mistakes(root: str, config: RunConfig) -> list[str]:
    if not root or any(root == allowed or root.startswith(allowed.rstrip("/") + "/") for allowed in config.roots):
        return []
    allowed = ", ".join(config.roots) or "none is configured"
    return [f'payload.image: this worker does not offer the root "{printable(root)}"; it offers: {allowed}']


def _size_mistakes(size: Size, config: RunConfig) -> list[str]:
    return [
        f"payload.resources.{shown}: {getattr(size, name)} is more than this worker gives ({most})"
        for name, shown in _SIZE_NAMES.items()
        if getattr(size, name) > (most := getattr(config.size_max, name))
    ]


def _network_mistakes(core: CoreFields, config: RunConfig) -> list[str]:
    if core.network and not config.network:
        return ["payload.network: this worker gives no network to tasks"]
    return []
