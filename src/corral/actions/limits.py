"""Bounds of actions; sections of the configuration."""

import msgspec

from corral.sandboxes.model import GIB, KIB, MIB


class ActionWorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's side of actions.

    Attributes:
        timeout_s: of an action that names none.
        acquire_within_s: how long an action waits for a sandbox.
        fetch_within_s: how long its inputs may take to come.
        collect_within_s: how long its outputs may take to be stored.
        inline_bytes: stdout and stderr up to this long are told inline too.
        output_bytes_max: stdout plus stderr; beyond it the command is killed.
        message_bytes: the longest encoded Action, Command or Directory.
        entries: of one input root, and of all outputs together.
        input_bytes: of one input root.
        depth: of directories.
        outputs_bytes: of all outputs together.
        fetch_at_once: blobs that are fetched at the same time.
        cache_bytes: what the files of input roots may take on this worker's disk.
        overlay: lay inputs under a writable layer instead of copying them, where runtime and kernel allow it.
    """

    timeout_s: float = 900.0
    acquire_within_s: float = 120.0
    fetch_within_s: float = 1800.0
    collect_within_s: float = 1800.0
    inline_bytes: int = 16 * KIB
    output_bytes_max: int = 4 * GIB
    message_bytes: int = 64 * MIB
    entries: int = 1_000_000
    input_bytes: int = 16 * GIB
    depth: int = 128
    outputs_bytes: int = 16 * GIB
    fetch_at_once: int = 16
    cache_bytes: int = 20 * GIB
    overlay: bool = True

    def __post_init__(self) -> None:
        for name in ("timeout_s", "acquire_within_s", "fetch_within_s", "collect_within_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds")
        for name in ("output_bytes_max", "message_bytes", "entries", "input_bytes", "depth", "outputs_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 1 <= self.fetch_at_once <= 256:
            raise ValueError("fetch_at_once must be between 1 and 256")
        if not 0 <= self.inline_bytes <= MIB:
            raise ValueError("inline_bytes must be between 0 and 1 MiB")
        if self.cache_bytes < 0:
            raise ValueError("cache_bytes must not be negative")


class ActionLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scheduler's side of actions.

    Attributes:
        message_bytes: the longest encoded Action or Command.
        result_bytes: the longest result that is cached.
        results: how many results the cache keeps, of all tenants; the ones unused for longest leave first.
        result_age_s: a result that nobody asked for leaves after this.
        memory_bytes: how much of the cache is also held in memory.
        fresh_s: how long blobs of a hit count as present without being asked for again; well under a store's grace.
        timeout_s: of an action that names none.
        timeout_max_s: the longest that an action may ask for.
        queued_s: the longest from submission to the end, waiting included.
        keep_s: how long an execution that ended is remembered, for those who come back to it.
        poll_s: how often an execution is looked at without a hint (another scheduler may have heard of it).
        abandon_s: an execution for which nobody has waited for so long is canceled.
        clean_every_s: how often old results are looked for.
        pools: platform properties by the name that an action gives as its property ``pool``.
        worker: the worker's side.
    """

    message_bytes: int = 4 * MIB
    result_bytes: int = 4 * MIB
    results: int = 5_000_000
    result_age_s: float = 30 * 86_400.0
    memory_bytes: int = 8 * MIB
    fresh_s: float = 20.0
    timeout_s: float = 900.0
    timeout_max_s: float = 86_400.0
    queued_s: float = 6 * 3600.0
    keep_s: float = 3600.0
    poll_s: float = 2.0
    abandon_s: float = 60.0
    clean_every_s: float = 600.0
    pools: dict[str, dict[str, str]] = {}
    worker: ActionWorkerConfig = ActionWorkerConfig()

    def __post_init__(self) -> None:
        for name in ("message_bytes", "result_bytes", "results"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("result_age_s", "timeout_s", "timeout_max_s", "queued_s", "poll_s", "abandon_s", "clean_every_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds")
        if self.memory_bytes < 0 or self.fresh_s < 0 or self.keep_s < 0:
            raise ValueError("memory_bytes, fresh_s and keep_s must not be negative")
        if self.timeout_s > self.timeout_max_s:
            raise ValueError("timeout_s must not exceed timeout_max_s")
        if self.queued_s < self.timeout_max_s / 24:
            raise ValueError("queued_s is too short for timeout_max_s")
