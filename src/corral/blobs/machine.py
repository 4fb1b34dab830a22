"""What a store decides before it touches a byte: is the request well formed, is it within bounds, what is evicted.

Pure; every adapter asks here, so that all of them refuse the same requests with the same words.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from corral.blobs.model import StoreLimits
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, QuotaExceeded, TooLarge
from corral.kernel.units import format_size

PIECE_BYTES: Final = 1024 * 1024
"""The largest piece that a reader hands out."""

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]*")
_HASH_LENGTH: Final = 64


def check_tenant(tenant: str) -> None:
    """Raise InvalidSpec unless ``tenant`` can be one component of a path or of an object's key."""
    if _TENANT.fullmatch(tenant) is None:
        raise InvalidSpec(
            f"tenant: {tenant[:80]!r} is not a tenant name; write 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit",
            field="tenant",
        )


def check_digest(digest: Digest) -> None:
    """Raise InvalidSpec unless ``digest`` is well formed; one that was decoded from a message need not be."""
    if _HASH.fullmatch(digest.hash) is None or digest.size_bytes < 0:
        raise InvalidSpec(
            f"digest: {str(digest)[:120]!r} is not a digest; it needs 64 lower-case hex digits and a size of 0 or more",
            field="digest",
        )


def check_digests(digests: Sequence[Digest]) -> None:
    """``check_digest`` of many at once: one question may name thousands."""
    text = "".join([digest.hash for digest in digests])
    fine = len(text) == len(digests) * _HASH_LENGTH and _HEX.fullmatch(text) is not None
    if not fine or not all([len(digest.hash) == _HASH_LENGTH and digest.size_bytes >= 0 for digest in digests]):
        for digest in digests:
            check_digest(digest)  # which says what is wrong with which


def check_range(offset: int, length: int | None) -> None:
    """Raise InvalidSpec when a range starts before the blob or has a negative length."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidSpec(f"range: offset {offset} and length {length} must not be negative", field="offset")


def check_blob_size(digest: Digest, limits: StoreLimits) -> None:
    """Raise TooLarge when the blob exceeds ``limits.blob_bytes``."""
    if digest.size_bytes > limits.blob_bytes:
        raise TooLarge(
            f"a blob of {format_size(digest.size_bytes)} is over this store's limit blob_bytes of "
            f"{format_size(limits.blob_bytes)}",
            limit="blob_bytes",
            limit_bytes=limits.blob_bytes,
            size_bytes=digest.size_bytes,
        )


def check_quota(tenant: str, *, held_bytes: int, more_bytes: int, quota_bytes: int | None) -> None:
    """Raise QuotaExceeded when ``more_bytes`` do not fit beside what the tenant holds."""
    if quota_bytes is not None and held_bytes + more_bytes > quota_bytes:
        raise QuotaExceeded(
            f'tenant "{tenant}" holds {format_size(held_bytes)} of its {format_size(quota_bytes)}; '
            f"{format_size(more_bytes)} more do not fit",
            cure="Delete blobs that are no longer used, or raise the tenant's quota.",
            reason="tenant-quota",
            tenant=tenant,
            held_bytes=held_bytes,
            quota_bytes=quota_bytes,
        )


def content_differs(digest: Digest, *, found: Digest) -> InvalidSpec:
    """The error for content whose hash or size is not the one announced."""
    return InvalidSpec(
        f"the content is not what its digest says: announced {digest}, received {found}",
        field="digest",
        announced=str(digest),
        received=str(found),
    )


def content_too_long(digest: Digest) -> InvalidSpec:
    """The error for content that goes on after its announced end; the rest is not read."""
    return InvalidSpec(
        f"the content is longer than the {digest.size_bytes} bytes that its digest {digest} announces",
        field="digest",
        announced=str(digest),
    )


def range_end(digest: Digest, offset: int, length: int | None) -> int:
    """Where a read stops: never beyond the blob, never before ``offset`` clipped to the blob."""
    start = min(offset, digest.size_bytes)
    return digest.size_bytes if length is None else min(start + length, digest.size_bytes)


def is_whole(digest: Digest, offset: int, length: int | None) -> bool:
    """Tell whether a read covers the blob, so that its hash can and must be checked."""
    return offset == 0 and range_end(digest, offset, length) == digest.size_bytes


def slices(data: bytes, at_most: int = PIECE_BYTES) -> Iterator[bytes]:
    """Cut ``data`` into pieces of at most ``at_most`` bytes; no piece for no data."""
    if len(data) <= at_most:
        if data:
            yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), at_most):
        yield bytes(view[start : start + at_most])


@dataclass(frozen=True, slots=True, order=True)
class Resident:
    """A blob that a store holds, as eviction sees it; sorts by last use. ``place`` is the store's own name for it."""

    used_s: float
    size_bytes: int
    place: str


def plan_eviction(
    residents: Iterable[Resident], *, held_bytes: int, limits: StoreLimits, grace_s: float, now_s: float
) -> tuple[Resident, ...]:
    """What to evict, in order: all that is older than ``age_s``, then the least recently used until under the budget.

    Nothing that was used within ``grace_s`` is ever chosen, even when the budget stays exceeded. Carrying out the
    plan leaves nothing to plan.
    """
    chosen: list[Resident] = []
    for resident in sorted(residents):
        idle_s = now_s - resident.used_s
        if idle_s <= grace_s:
            break
        too_old = limits.age_s is not None and idle_s > limits.age_s
        too_much = limits.total_bytes is not None and held_bytes > limits.total_bytes
        if not (too_old or too_much):
            break
        chosen.append(resident)
        held_bytes -= resident.size_bytes
    return tuple(chosen)
