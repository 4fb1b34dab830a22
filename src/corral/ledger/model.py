"""The nouns of the ledger: what a run did, and what was refused to whom.

Rows are written once; only the name of a log is added when it is finished after its run. They name content by digest
and secrets not at all: an environment is kept as the digest of its names and values, so that two runs can be compared
and nothing can be read out of the row.
"""

import msgspec

Fact = str | int | float | bool | None


class AuditRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one run; enough to repeat it.

    Attributes:
        phase: completed, failed or exception.
        reason: of an exception; "" otherwise.
        end: ``sandboxes.model.End`` of the command; "" when it never ran.
        image: the toolchain's identity, a digest; "" for the host's own read-only root.
        inputs: digests of what went in.
        env_digest: of the whole environment.
        artifacts: (name, digest) of what came out.
        log: digest of the finished log; "" when there is none.
        warm: the sandbox was waiting already; otherwise ``cold_reason`` says why not.
        created_s, started_s, resolved_s: Unix seconds; ``started_s`` is None when the command never ran.
    """

    task_id: str
    run: int
    tenant: str
    phase: str
    resolved_s: float
    created_s: float
    started_s: float | None = None
    reason: str = ""
    worker_id: str = ""
    sandbox: str = ""
    runtime: str = ""
    image: str = ""
    argv: tuple[str, ...] = ()
    env_digest: str = ""
    inputs: tuple[str, ...] = ()
    artifacts: tuple[tuple[str, str], ...] = ()
    log: str = ""
    log_bytes: int = 0
    end: str = ""
    exit_status: int | None = None
    signal: int | None = None
    message: str = ""
    warm: bool = False
    cold_reason: str = ""
    acquire_s: float = 0.0
    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0


class AuditLog(msgspec.Struct, frozen=True, kw_only=True):
    """The finished log of a run, for its row."""

    task_id: str
    run: int
    log: str
    log_bytes: int


class SecurityEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One refusal. The caller saw an opaque error; the truth stands here.

    Attributes:
        component: the part that refused: rest, fleet, queue, …
        kind: kebab-case and stable, such as ``token-unknown``.
        tenant: "" when the caller never proved one.
        actor: who asked, as far as known: a principal's name, a worker's id, an address.
        reason: one sentence for the operator.
        request_id: finds the request in the logs of its door; "" outside of one.
    """

    at_s: float
    component: str
    kind: str
    reason: str
    tenant: str = ""
    actor: str = ""
    request_id: str = ""
    facts: dict[str, Fact] = {}


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An audit row at its place in the ledger; ``seq`` only grows."""

    seq: int
    row: AuditRow


class SecurityEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A security event at its place in the ledger; ``seq`` only grows."""

    seq: int
    event: SecurityEvent


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a listing: the newest ``limit`` entries, or those before the entry ``before``."""

    limit: int = 100
    before: int | None = None
