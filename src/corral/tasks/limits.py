"""Bounds of the queue; a section of the configuration."""

import msgspec


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the queue accepts and how long it waits.

    Attributes:
        lease_s: how long a worker holds a run without renewing; workers renew at a third of it.
        claim_wait_s: the longest long poll.
        claim_tick_s: how often a waiting claim looks on its own, for work that another scheduler accepted.
        claim_runs: runs per claim.
        sweep_every_s: how often leases, deadlines and expiry are looked at.
        sweep_tasks: tasks per transaction of the sweeper.
        submit_tasks: tasks per submission.
        definition_bytes: of one task, as JSON.
        dependencies: of one task.
        retries: the most that a task may ask for.
        deadline_s: the longest that a task may ask for; also the shortest is a tenth of a second.
        expires_s: the longest that a resolved task may be kept.
        idempotency_s: how long a submission's key is remembered.
    """

    lease_s: float = 30.0
    claim_wait_s: float = 60.0
    claim_tick_s: float = 1.0
    claim_runs: int = 256
    sweep_every_s: float = 1.0
    sweep_tasks: int = 256
    submit_tasks: int = 1000
    definition_bytes: int = 1024 * 1024
    dependencies: int = 1000
    retries: int = 49
    deadline_s: float = 30 * 86_400.0
    expires_s: float = 366 * 86_400.0
    idempotency_s: float = 86_400.0

    def __post_init__(self) -> None:
        for name in ("claim_runs", "sweep_tasks", "submit_tasks", "definition_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("claim_tick_s", "sweep_every_s", "claim_wait_s", "idempotency_s"):
            if not 0 < getattr(self, name) <= 7 * 86_400:
                raise ValueError(f"{name} must be above 0 and at most a week")
        if not 1 <= self.lease_s <= 3600:
            raise ValueError("lease_s must be between 1 and 3600 seconds: workers renew at a third of it")
        if not 0 <= self.retries <= 49:
            raise ValueError("retries must be between 0 and 49")
