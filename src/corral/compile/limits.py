"""The ``compile`` section of the configuration: bounds of the daemon and of its store."""

import msgspec

from corral.compile.remote.model import RemoteConfig
from corral.kernel.errors import InvalidSpec

GIB = 1024**3
MIB = 1024**2


class SharedConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object store behind the local one, which machines share.

    Attributes:
        url: ``s3://bucket``, ``gs://…``, ``az://…`` or ``file:///…``; "" for none.
        options: the store's own: for S3 ``endpoint``, ``region``, ``access_key_id``, ``secret_access_key``; what is
            not given is taken from the environment (``AWS_…``) of whoever starts the daemon.
        prefix: in front of every key.
        deadline_s: longest for one request.
        rest_s: how long a store that failed is left alone.
        object_bytes: larger entries are neither given nor taken.
    """

    url: str = ""
    options: dict[str, str] = {}
    prefix: str = ""
    deadline_s: float = 5.0
    rest_s: float = 30.0
    object_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        if self.url and "://" not in self.url:
            raise InvalidSpec(f'shared.url: "{self.url}" is not a URL; write "s3://bucket"')


class CompileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cached compiles (``corral cc``).

    Attributes:
        store: directory of the local store; "" is ``corral-cc`` in the user's cache directory.
        store_bytes: the store is cleaned down to nine tenths of this when it grows past it.
        store_age_s: results that nobody used for so long are removed.
        object_bytes: a result with a file above this is not stored.
        compression_level: zstd level of stored files; 0 stores them as they are, so that they can be cloned out.
        hard_links: with ``compression_level`` 0: link objects out instead of copying them. A tool that changes an
            object in place then spoils the stored one, which its check on read finds; hence off.
        include_sets: how many different sets of headers are remembered per request.
        plans: how many requests are remembered in memory.
        connections: how many wrappers may wait at once; further ones compile without the cache.
        idle_s: the daemon ends when nobody asked for so long.
        follow_s: how long a compile waits for an equal one that runs already.
        records: how many sources explain remembers.
        journal_bytes: size of the journal behind ``corral cc stats`` before it is turned over; one old one is kept.
        jobs: threads that hash and store.
        shared: an object store behind the local one.
        remote: compiles on the fleet.
    """

    store: str = ""
    store_bytes: int = 10 * GIB
    store_age_s: float = 30 * 86_400.0
    object_bytes: int = 256 * MIB
    compression_level: int = 1
    hard_links: bool = False
    include_sets: int = 8
    plans: int = 20_000
    connections: int = 512
    idle_s: float = 3600.0
    follow_s: float = 300.0
    records: int = 10_000
    journal_bytes: int = 16 * MIB
    jobs: int = 2
    shared: SharedConfig = SharedConfig()
    remote: RemoteConfig = RemoteConfig()

    def __post_init__(self) -> None:
        mistakes = []
        if not 0 <= self.compression_level <= 19:
            mistakes.append(f"compression_level: {self.compression_level} is not between 0 and 19")
        if self.hard_links and self.compression_level:
            mistakes.append("hard_links: compressed files cannot be linked; set compression_level = 0 as well")
        if self.shared.url and self.remote.paranoid:
            mistakes.append(
                "shared.url: with remote.paranoid only workers read and write shared stores; leave it empty"
            )
        mistakes += [
            f"{name}: must be at least 1"
            for name in ("include_sets", "plans", "connections", "records", "jobs", "store_bytes", "object_bytes")
            if getattr(self, name) < 1
        ]
        if mistakes:
            raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))
