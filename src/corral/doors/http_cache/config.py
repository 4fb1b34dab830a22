"""The section ``[http_cache]`` of the configuration."""

import msgspec

_GIB = 1024**3


class HttpCacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caches over plain HTTP, at ``/cache/{tenant}``.

    Attributes:
        enabled: serve them.
        shared: a tenant whose entries everybody reads below their own, and nobody but that tenant writes; "" for none.
        entry_bytes: the largest entry.
        entry_age_s: an entry that nobody asked for is forgotten after this.
        clean_every_s: how often old entries are looked for.
        result_bytes: the longest encoded result of Bazel's that is checked for completeness.
    """

    enabled: bool = True
    shared: str = ""
    entry_bytes: int = 1 * _GIB
    entry_age_s: float = 30 * 86_400.0
    clean_every_s: float = 600.0
    result_bytes: int = 4 * 1024**2

    def __post_init__(self) -> None:
        if self.entry_age_s <= 0 or self.clean_every_s <= 0:
            raise ValueError("entry_age_s and clean_every_s must be above 0 seconds")
        if self.entry_bytes < 1 or self.result_bytes < 1:
            raise ValueError("entry_bytes and result_bytes must be at least 1")
