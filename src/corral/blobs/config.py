"""The section ``[blobs]`` of the configuration: which tiers, and within which limits."""

import msgspec


def _check_name(name: str) -> None:
    if not name:
        raise ValueError('blob tier: name must not be empty; write for example "disk"')


def _check_positive(tier: str, **values: float | None) -> None:
    where = f'blob tier "{tier}"' if tier else "blobs"
    for field, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{where}: {field} must be over 0, not {value:g}")


class DiskTierConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="disk"
):
    """A folder of this machine. ``path`` "" means ``blobs`` in the data directory.

    Contents of caches (Bazel's, compilers') are on the disk ``settle_s`` after they were stored, all else before the
    answer; in between a loss of power costs a cache its latest entries, and nothing else. Each process
    remembers the uses of at most ``recent_blobs`` blobs for some seconds (well within ``grace_s``), and small contents
    of ``recent_bytes`` together, and need not ask the disk for them again.
    """

    name: str = "disk"
    path: str = ""
    deadline_s: float = 30.0
    total_bytes: int | None = 50 * 1024**3
    tenant_bytes: int | None = None
    age_s: float | None = 30 * 86_400.0
    grace_s: float = 60.0
    settle_s: float = 5.0
    threads: int = 4
    recent_blobs: int = 10_000
    recent_bytes: int = 4 * 1024**2

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_positive(
            self.name,
            deadline_s=self.deadline_s,
            total_bytes=self.total_bytes,
            tenant_bytes=self.tenant_bytes,
            age_s=self.age_s,
            grace_s=self.grace_s,
            settle_s=self.settle_s,
            threads=self.threads,
            recent_blobs=self.recent_blobs,
            recent_bytes=self.recent_bytes,
        )
        if self.age_s is not None and self.age_s <= self.grace_s:
            raise ValueError(f'blob tier "{self.name}": age_s must be over grace_s, or the age never evicts anything')


class ObjectStoreTierConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="object-store"
):
    """An object store by URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…`` or ``file:///…``.

    ``options`` are the store's own: for S3 ``endpoint``, ``region``, ``access_key_id``, ``secret_access_key``; what
    is not given there is taken from the environment (``AWS_…``). The bucket's life-cycle rules evict.
    """

    name: str = "object-store"
    url: str
    options: dict[str, str] = {}
    prefix: str = ""
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_positive(self.name, deadline_s=self.deadline_s)
        if "://" not in self.url:
            raise ValueError(f'blob tier "{self.name}": url: {self.url!r} is not a URL; write "s3://bucket/prefix"')


class BlobsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section ``[blobs]``: the tiers, the fastest first, and what holds for all of them.

    ``clean_every_s`` is the time between two cleanings, ``cool_off_s`` how long a tier that failed is left alone.
    """

    tiers: tuple[DiskTierConfig | ObjectStoreTierConfig, ...] = (DiskTierConfig(),)
    blob_bytes: int = 64 * 1024**3
    clean_every_s: float = 300.0
    cool_off_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ValueError('blobs: tiers: at least one is needed; write [[blobs.tiers]] with kind = "disk"')
        names = [tier.name for tier in self.tiers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'blobs: tiers: two have the name "{name}"; give each its own')
        _check_positive("", blob_bytes=self.blob_bytes, clean_every_s=self.clean_every_s, cool_off_s=self.cool_off_s)
