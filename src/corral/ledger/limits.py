"""Bounds of the ledger; importing them must not import the database."""

import msgspec


class LedgerLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the ledger; a section of the configuration.

    Attributes:
        events_waiting: security events held in memory while the database is slow.
        batch: events written together.
        flush_s: how long an event waits for others to be written with.
        close_s: how long the last events may take when the process ends.
        keep_s: how long audit rows and security events are kept.
        forget_every_s: how often older ones are looked for.
    """

    events_waiting: int = 10_000
    batch: int = 500
    flush_s: float = 0.2
    close_s: float = 5.0
    keep_s: float = 400 * 86_400.0
    forget_every_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("events_waiting", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("flush_s", "close_s", "keep_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.forget_every_s <= 0:
            raise ValueError("forget_every_s must be above 0")
