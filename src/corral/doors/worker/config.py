"""The ``worker_door`` section of the configuration."""

import msgspec


class WorkerDoorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's own door, for clients with a route.

    Attributes:
        listen: ``HOST:PORT``; "" keeps it shut. Always TLS, with the worker's own certificate.
        address: where clients reach it, ``HOST:PORT``; "" is ``listen`` with the port that was really taken.
        executions: how many clients' executions at once; 0 is as many as the worker has slots.
        blob_bytes: the largest blob that a client may upload.
        inline_bytes: outputs up to so many bytes, together, come with the answer.
        answer_within_s: the longest execution.
    """

    listen: str = ""
    address: str = ""
    executions: int = 0
    blob_bytes: int = 256 * 1024**2
    inline_bytes: int = 8 * 1024**2
    answer_within_s: float = 600.0

    def __post_init__(self) -> None:
        if self.executions < 0 or self.blob_bytes < 1 or self.inline_bytes < 0 or self.answer_within_s <= 0:
            raise ValueError("executions, blob_bytes, inline_bytes and answer_within_s must not be negative")
