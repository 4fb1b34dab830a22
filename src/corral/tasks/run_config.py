"""How a worker carries out runs; sections of the configuration."""

import msgspec

from corral.sandboxes.model import GIB, Size


class SizeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one sandbox, as in ``sandboxes.model.Size``."""

    memory_bytes: int = 2 * GIB
    cpus: float = 2.0
    processes: int = 512
    files: int = 1_000_000
    disk_bytes: int = 1 * GIB
    open_files: int = 4096

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")

    def size(self) -> Size:
        """The same as a size."""
        return Size(**{name: getattr(self, name) for name in self.__struct_fields__})


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Policy and bounds for runs.

    Attributes:
        runtime: the runtime of tasks that name none; "" is the first that the worker offers.
        roots: directories (and what is below them) that ``image: "root:/dir"`` may name.
        network: whether tasks may ask for network.
        size: the limits of a task that names none.
        size_max: a task that asks for more is malformed.
        acquire_within_s: how long a run waits for a sandbox.
        stage_within_s: how long inputs may take to be put in place.
        hook_within_s: how long one hook of a plugin may take.
        cleanup_within_s: how long the end of an aborted run may take.
    """

    runtime: str = ""
    roots: tuple[str, ...] = ()
    network: bool = False
    size: SizeLimits = SizeLimits()
    size_max: SizeLimits = SizeLimits(
        memory_bytes=1024 * GIB, cpus=1024.0, processes=100_000, files=100_000_000, disk_bytes=1024 * GIB
    )
    acquire_within_s: float = 120.0
    stage_within_s: float = 1800.0
    hook_within_s: float = 1800.0
    cleanup_within_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("acquire_within_s", "stage_within_s", "hook_within_s", "cleanup_within_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds")
        for root in self.roots:
            if not root.startswith("/") or ".." in root.split("/"):
                raise ValueError(f'roots: "{root}" is not an absolute path')
        for name in SizeLimits.__struct_fields__:
            if getattr(self.size, name) > getattr(self.size_max, name):
                raise ValueError(f"size.{name} must not exceed size_max.{name}")


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The claim and lease loops of a worker.

    Attributes:
        slots: runs whose command may run at the same time.
        ending_max: further runs that may be telling their end; more, and nothing new is claimed.
        claim_wait_s: the long poll.
        claim_gather_s: how long a worker of which more than half is busy waits for further room before it claims.
        claim_ahead: the most runs that are claimed beyond the free slots, while runs are short; 0 for none.
        claim_ahead_s: as many are claimed ahead as ended within this time, when half of them have begun.
        claim_ahead_keep_s: a run that was claimed ahead and finds no slot for so long is given back.
        started_wait_s: how long the news that a command was started waits for its end, to go with it.
        retry_s: the first pause after a claim, renewal or report that failed; doubles up to ``retry_max_s``.
        tick_s: how often leases are looked at.
        lease_part: a lease is renewed when this part of it has passed.
        drain_within_s: how long a drain waits for runs before it stops them.
        stop_within_s: a worker that has not ended so long after a stop ends its process the hard way.
    """

    slots: int = 8
    ending_max: int = 512
    claim_wait_s: float = 20.0
    claim_gather_s: float = 0.01
    claim_ahead: int = 512
    claim_ahead_s: float = 0.2
    claim_ahead_keep_s: float = 0.5
    started_wait_s: float = 0.02
    retry_s: float = 0.1
    retry_max_s: float = 5.0
    tick_s: float = 0.5
    lease_part: float = 1 / 3
    drain_within_s: float = 600.0
    stop_within_s: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= 1000:
            raise ValueError("slots must be between 1 and 1000")
        if not 0 <= self.claim_ahead <= 1000:
            raise ValueError("claim_ahead must be between 0 and 1000")
        if self.ending_max < 1:
            raise ValueError("ending_max must be at least 1")
        for name in self.__struct_fields__:
            if name.endswith("_s") and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds")
        if not 0 < self.lease_part < 1:
            raise ValueError("lease_part must be between 0 and 1")
