"""The section ``[reapi]`` of the configuration."""

from typing import Final

import msgspec

from corral.wire.transport import ServerTls

_MIB = 1024**2
_PROCESSES_MAX = 256
DEFAULT_ADDRESS: Final = "127.0.0.1:8980"
OFF: Final = "off"


class ReapiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The door for Bazel and its kin.

    Attributes:
        address: where it listens, ``HOST:PORT``; port 0 takes a free one. "" is 127.0.0.1:8980 unless another program
            has it; "off" closes the door.
        tls: its certificate. With ``tls.client_ca`` every client shows a certificate whose common name is its tenant,
            and needs no token.
        processes: how many processes of its own the door has, all at one port; 0: the scheduler's own process is the
            door. They serve content and results by themselves and pass executions on to the scheduler.
        cache_update: take results that clients made themselves; off means that only workers fill the action cache.
        batch_bytes: most content in one batch; what is larger travels as a stream.
        batch_blobs: most digests in one request.
        message_bytes: the largest message.
        inline_bytes: most output that is put into an answer when the client asks for it.
        tree_directories: most directories of one tree.
        tree_page_bytes: about how much of a tree goes into one answer.
        uploads: most streams that are being written at once, and those that were broken off and may go on.
        upload_idle_s: a stream that gets nothing for so long is forgotten.
        chunk_bytes: the average chunk when a blob is split.
        streams: calls at one time on one connection.
        stop_s: how long open calls may finish when the process stops.
    """

    address: str = ""
    tls: ServerTls = ServerTls()
    processes: int = 0
    cache_update: bool = True
    batch_bytes: int = 4 * _MIB
    batch_blobs: int = 20_000
    message_bytes: int = 16 * _MIB
    inline_bytes: int = 1 * _MIB
    tree_directories: int = 100_000
    tree_page_bytes: int = 2 * _MIB
    uploads: int = 1000
    upload_idle_s: float = 30.0
    chunk_bytes: int = 512 * 1024
    streams: int = 1000
    stop_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.processes <= _PROCESSES_MAX:
            raise ValueError(f"processes must be between 0 and {_PROCESSES_MAX}")
        if self.batch_bytes + _MIB > self.message_bytes:
            raise ValueError("batch_bytes must be at least 1 MiB under message_bytes: a batch is one message")
        if not 1024 <= self.chunk_bytes <= _MIB:
            raise ValueError("chunk_bytes must be between 1 KiB and 1 MiB, as the protocol says")
