"""Names of entries, as the layouts of all clients write them below ``/cache/{tenant}``. Pure.

::

    Bazel             ac/<64 hex>, cas/<64 hex>      the second is the SHA-256 of the content, and is checked
    ccache, bazel     ac/<64 hex>                    ccache's own bytes
    ccache, flat      <key>
    ccache, subdirs   <2 characters>/<rest of the key>
    sccache, WebDAV   [prefix/]a/b/c/<key>
"""

import re
from dataclasses import dataclass
from typing import Final

from corral.kernel.errors import InvalidSpec

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._+=~-]{1,200}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SEGMENTS_MAX: Final = 12
_LENGTH_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class EntryName:
    """Where an entry stands below its tenant.

    Attributes:
        text: the path, without a slash at either end; "" is the top.
        content_hash: what the content's SHA-256 must be; "" when the name says nothing of it.
        maybe_result: Bazel keeps its action results under such names (and ccache its own things).
        collection: asked for as a directory.
    """

    text: str
    content_hash: str = ""
    maybe_result: bool = False
    collection: bool = False


def parse_name(path: str) -> EntryName:
    """The name of a path below the tenant. Raises InvalidSpec for one that no client writes."""
    collection = path.endswith("/") or not path.strip("/")
    text = path.strip("/")
    segments = text.split("/") if text else []
    if len(text) > _LENGTH_MAX or len(segments) > _SEGMENTS_MAX:
        raise InvalidSpec(f"the name has more than {_LENGTH_MAX} characters or {_SEGMENTS_MAX} parts", field="path")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or set(segment) == {"."}:
            raise InvalidSpec(
                f'"{segment[:80]}" cannot be a part of a name; letters, digits and . _ + = ~ - can', field="path"
            )
    if len(segments) == 2 and segments[0] in ("ac", "cas") and _HASH.fullmatch(segments[1]):
        if segments[0] == "cas":
            return EntryName(text, content_hash=segments[1])
        return EntryName(text, maybe_result=True)
    return EntryName(text, collection=collection)
