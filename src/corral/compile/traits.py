"""What the text of a file says that decides whether a result may be kept: found once, when the file is hashed. Pure."""

import re
from typing import Final

from corral.compile.model import PLAIN_FILE, FileTraits

_ASKS: Final = re.compile(rb"__has_(?:include|include_next|embed)\s*\(\s*([<\"]?)([^>\")\n]*)")
_NAMES_ITSELF: Final = (b"__FILE__", b"__BASE_FILE__", b"__builtin_FILE", b"source_location", b"__FILE_NAME__")
_ASSEMBLED: Final = re.compile(rb"(?<![#\w.])\.(?:incbin|include)\b")
_EMBED: Final = re.compile(rb"^[ \t]*#[ \t]*embed\b", re.MULTILINE)


def traits(content: bytes) -> FileTraits:
    """What the text of a file says that its hash alone does not."""
    has_include = b"__has_" in content and (b"__has_include" in content or b"__has_embed" in content)
    embeds = (b".inc" in content and _ASSEMBLED.search(content) is not None) or (
        b"embed" in content and _EMBED.search(content) is not None
    )
    names_itself = any(name in content for name in _NAMES_ITSELF)
    date, time, timestamp = (name in content for name in (b"__DATE__", b"__TIME__", b"__TIMESTAMP__"))
    if not (has_include or embeds or names_itself or date or time or timestamp):
        return PLAIN_FILE
    return FileTraits(
        date=date,
        time=time,
        timestamp=timestamp,
        embeds=embeds,
        embedded=_embedded(content) if embeds else (),
        has_include=has_include,
        asks_for=_asked(content) if has_include else (),
        names_itself=names_itself,
    )


def _asked(content: bytes) -> tuple[str, ...]:
    """The names that a text asks for; "" for a name that is made by a macro."""
    names = set()
    for quote, name in _ASKS.findall(content):
        text = name.decode("utf-8", "surrogateescape").strip()
        names.add(text if quote else "")
    return tuple(sorted(names))


_DIRECTIVE: Final = re.compile(rb"\.(?:incbin|include)\b[ \t]*(\"[^\"\\\n]*\")?")


def _embedded(content: bytes) -> tuple[str, ...]:
    """The names behind the directives of the assembler; "" for one that is made by a macro, or quoted in a string."""
    return tuple(sorted({name.decode("utf-8", "surrogateescape")[1:-1] for name in _DIRECTIVE.findall(content)}))
