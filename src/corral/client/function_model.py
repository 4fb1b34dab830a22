"""What REST answers about functions, and what it is asked, as values."""

import msgspec

from corral.functions.model import (
    InstancePhase,
    InstanceStats,
    Kind,
    Limits,
    LogLine,
    OnBreak,
    Preopen,
    RevisionPhase,
    RevisionSpec,
    Scale,
    Share,
)
from corral.functions.traces import Trace


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a revision on a worker."""

    id: str
    worker: str
    phase: InstancePhase
    address: str = ""
    pid: int = 0
    started_s: float = 0.0
    start_s: float = 0.0
    cold: bool = False
    text: str = ""
    stats: InstanceStats = InstanceStats()


class RevisionView(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a function. ``percent`` is its part of the split; ``trouble`` why it has too few instances."""

    name: str
    fingerprint: str
    phase: RevisionPhase
    percent: int
    deployed_s: float
    spec: RevisionSpec
    scale: Scale
    why: str = ""
    trouble: str = ""
    wanted: int = 0
    waiting: int = 0
    in_flight: int = 0
    stats: InstanceStats = InstanceStats()
    instances: tuple[InstanceView, ...] = ()


class FunctionView(msgspec.Struct, frozen=True, kw_only=True):
    """A function. ``default`` is "" without one, or with a split between several.

    ``urls`` are where it is called; without any, ``why_no_url`` says why.
    """

    name: str
    tenant: str
    version: int
    changed_s: float
    default: str = ""
    split: tuple[Share, ...] = ()
    on_break: OnBreak = OnBreak.NOTHING
    why_none: str = ""
    revisions: tuple[RevisionView, ...] = ()
    urls: tuple[str, ...] = ()
    why_no_url: str = ""


class FunctionList(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant's functions by name."""

    functions: tuple[FunctionView, ...]


class TraceList(msgspec.Struct, frozen=True, kw_only=True):
    """What requests went through, oldest first."""

    traces: tuple[Trace, ...]


class DeployRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A revision to deploy.

    Attributes:
        module: digest of the program; a blob of the tenant, or what ``url`` must have ("" takes what is there).
        url: where to fetch it when it is not stored, ``https://…`` or ``oci://registry/name[:tag][@sha256:…]``; only
            below ``functions.module_urls``.
        kind: how it is entered; found out when None.
        default: make it the default; None: only if the function is new.
        on_break: what follows when the default breaks; None leaves it as it is.
    """

    module: str = ""
    url: str = ""
    kind: Kind | None = None
    limits: Limits = Limits()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    preopens: tuple[Preopen, ...] = ()
    outbound: tuple[str, ...] = ()
    handler: str = "handle"
    scale: Scale = Scale()
    default: bool | None = None
    on_break: OnBreak | None = None


class DeployAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment did. Not ``changed``: the same was deployed before."""

    function: FunctionView
    changed: bool
    compile_s: float = 0.0
    cached: bool = False


class ChangeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a change did; not ``changed``: it was so before."""

    function: FunctionView
    changed: bool
    action: str = ""
    text: str = ""


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``on``: the revision gets everything. Off: it gets nothing, and the successor everything, if one is named."""

    revision: str
    on: bool = True
    successor: str = ""
    force: bool = False


class SplitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts in percent, together 100."""

    shares: tuple[Share, ...]


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Back to the state after ``version``; None: to the newest that had another split."""

    version: int | None = None


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a function's history."""

    version: int
    at_s: float
    actor: str
    action: str
    text: str
    split: tuple[Share, ...]
    revisions: tuple[str, ...]
    removed: bool = False


class ChangeList(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first; ``next`` is the ``before`` of the following page, 0 at the end."""

    changes: tuple[ChangeView, ...]
    next: int = 0


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines, oldest first."""

    lines: tuple[LogLine, ...]
