"""The whole schema on one page; the same on SQLite and PostgreSQL.

Conventions: ids are text (``kernel.ids``); instants are Unix seconds as double, ``…_s``; a column named after a
struct (``definition``, ``life``, ``facts``) holds its msgspec JSON as bytes; absent text is ``""``, and NULL is used
only where "none" must not be found by an index. Whoever changes this page adds a migration; a test compares the two.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

Sequence: Final = BigInteger().with_variant(Integer, "sqlite")
"""A number that the database gives; on SQLite only INTEGER can be one, and it has 64 bits there."""

workers: Final = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),  # wrk_…; chosen by the worker and kept over its restarts
    Column("phase", Text, nullable=False),  # of fleet.model, as text
    Column("drain", Boolean, nullable=False),  # desired: take nothing new
    Column("registered_s", Double, nullable=False),
    Column("seen_s", Double, nullable=False),  # last message, written at most once per heartbeat
    Column("registration", LargeBinary, nullable=False),  # address, capacity, runtimes, images, version, labels
    Column("life", LargeBinary, nullable=False),  # the pure machine's state
)

tasks: Final = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),  # task_…; sorts by birth
    Column("tenant", Text, nullable=False),
    Column("phase", Text, nullable=False),  # of tasks.model.Phase
    Column("rank", Integer, nullable=False),  # of tasks.model.Priority: 0 highest (served first) … 4 lowest
    Column("created_s", Double, nullable=False),
    Column("group_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("runtime", Text, nullable=False),  # that the task asks for; "" = any worker's default
    Column("due_s", Double),  # next instant at which the clock matters (lease end, deadline, expiry); NULL = never
    Column("worker_id", Text),  # that holds the current run; NULL = nobody
    Column("definition", LargeBinary, nullable=False),  # tasks.model.TaskDefinition; never changes
    Column("life", LargeBinary, nullable=False),  # the pure machine's state; the columns above repeat parts of it
    # The claim: a tenant's pending tasks, lowest rank first, then oldest first. Its prefix serves the counts.
    Index("ix_tasks_claim", "tenant", "phase", "rank", "created_s", "id"),
    Index("ix_tasks_due_s", "due_s"),
    Index("ix_tasks_worker_id", "worker_id"),
    Index("ix_tasks_group", "tenant", "group_id", "id"),
    Index("ix_tasks_list", "tenant", "id"),
)

dependencies: Final = Table(
    "dependencies",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),  # who waits
    Column("needs_id", Text, primary_key=True),  # for whom; may be forgotten earlier, so no foreign key
    Index("ix_dependencies_needs_id", "needs_id"),
)

task_events: Final = Table(
    "task_events",  # the story; written in the transaction of the transition that it tells
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("task_id", Text, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("kind", Text, nullable=False),  # kebab-case, past tense
    Column("run", Integer),  # NULL: of the task as a whole
    Column("worker_id", Text, nullable=False),
    Column("text", Text, nullable=False),  # one sentence for people
    Column("facts", LargeBinary, nullable=False),
    Index("ix_task_events_task_id", "task_id", "seq"),
    Index("ix_task_events_tenant", "tenant", "seq"),
)

artifacts: Final = Table(
    "artifacts",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("run", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),  # of tasks.model.ArtifactKind
    Column("digest", Text, nullable=False),  # of a blob or a tree; "" for kind error
    Column("size_bytes", BigInteger, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("executable", Boolean, nullable=False, server_default=false()),
    Index("ix_artifacts_digest", "tenant", "digest"),
)

idempotency_keys: Final = Table(
    "idempotency_keys",  # a submission repeated with its key answers with the first one's tasks
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),  # digest of the request: the same key with another body is a Conflict
    Column("task_ids", LargeBinary, nullable=False),
    Column("created_s", Double, nullable=False),
    Index("ix_idempotency_keys_created_s", "created_s"),
)

audit: Final = Table(
    "audit",  # one row per run, kept when the task is forgotten; ledger.model.AuditRow
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("task_id", Text, nullable=False),
    Column("run", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("phase", Text, nullable=False),  # completed, failed or exception
    Column("worker_id", Text, nullable=False),
    Column("resolved_s", Double, nullable=False),
    Column("facts", LargeBinary, nullable=False),  # the whole row; the columns above repeat what is searched for
    UniqueConstraint("task_id", "run"),  # a run is told once, however often it is written
    Index("ix_audit_tenant", "tenant", "seq"),
    Index("ix_audit_resolved_s", "resolved_s"),
)

security_events: Final = Table(
    "security_events",  # one per refusal; ledger.model.SecurityEvent
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("at_s", Double, nullable=False),
    Column("tenant", Text, nullable=False),  # "" when the caller never proved one
    Column("component", Text, nullable=False),  # which part refused: rest, fleet, queue, …
    Column("kind", Text, nullable=False),  # kebab-case
    Column("actor", Text, nullable=False),  # who, as far as known
    Column("reason", Text, nullable=False),  # one sentence; the caller never sees it
    Column("request_id", Text, nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Index("ix_security_events_tenant", "tenant", "seq"),
    Index("ix_security_events_at_s", "at_s"),
)

functions: Final = Table(
    "functions",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),  # grows with every change; 0 while the first one is being made
    Column("removed", Boolean, nullable=False),  # kept for its history
    Column("changed_s", Double, nullable=False),
    Column("state", LargeBinary, nullable=False),  # functions.machine.FunctionState
)

function_specs: Final = Table(
    "function_specs",  # what was ever deployed; never changes, so that every earlier state can come back
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("function", Text, primary_key=True),
    Column("revision", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("created_s", Double, nullable=False),
    Column("spec", LargeBinary, nullable=False),  # functions.model.RevisionSpec
)

function_history: Final = Table(
    "function_history",  # one row per change, written in its transaction; functions.machine.HistoryEntry
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("function", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("at_s", Double, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),  # kebab-case, past tense
    Column("text", Text, nullable=False),  # one sentence for people
    Column("state", LargeBinary, nullable=False),
)

function_homes: Final = Table(
    "function_homes",  # what each scheduler conducts, published every second; functions.homes.Home
    metadata,
    Column("scheduler", Text, primary_key=True),  # one process of one; rows of those that are gone are deleted
    Column("beat", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

action_results: Final = Table(
    "action_results",  # the action cache; actions.ports.ActionCache
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("action", Text, primary_key=True),  # digest of the action
    Column("stored_s", Double, nullable=False),
    Column("used_s", Double, nullable=False),  # last hit, written at most once an hour
    Column("execution", Text, nullable=False),  # that made it; "" when a client stored it
    Column("encoded", LargeBinary, nullable=False),  # ActionResult of the remote execution API
    Column("named", LargeBinary, nullable=False),  # every blob that it names, as JSON
    Index("ix_action_results_used_s", "used_s"),
)

cache_entries: Final = Table(
    "cache_entries",  # of the HTTP caches; doors.http_cache.ports.Entries
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),  # of the content, which may have gone
    Column("stored_s", Double, nullable=False),
    Column("used_s", Double, nullable=False),  # last hit, written at most once an hour
    Index("ix_cache_entries_used_s", "used_s"),
)
