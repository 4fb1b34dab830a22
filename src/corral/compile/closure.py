"""What a compile read, and what of it decides whether its result may be kept, and where and when it holds. Pure.

``listing`` reads what compilers tell, ``traits`` what the texts of files say, ``searched`` what was looked for; their
names stand here too.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from corral.compile.listing import include_files, parse_dependencies, take_notes, take_tree
from corral.compile.model import (
    Bypass,
    BypassReason,
    Cacheable,
    FileTraits,
    Invocation,
    Language,
)
from corral.compile.paths import ROOT_MARK, absolute
from corral.compile.searched import ASSEMBLY, absent, present
from corral.compile.traits import traits

__all__ = [
    "UNPREPROCESSED",
    "absent",
    "bound_to",
    "include_files",
    "moment",
    "parse_dependencies",
    "present",
    "refusal",
    "replay_dependencies",
    "store_dependencies",
    "take_notes",
    "take_tree",
    "traits",
    "written_since",
]

_PRECOMPILED: Final = (".gch", ".pch", ".pcm", ".gcm", ".ifc")
UNPREPROCESSED: Final = frozenset(
    {
        Language.ASSEMBLER,
        Language.C_PREPROCESSED,
        Language.CXX_PREPROCESSED,
        Language.OBJC_PREPROCESSED,
        Language.OBJCXX_PREPROCESSED,
    }
)
"""Of these a compiler lists nothing, and writes no rules for make even if asked to: they read the source alone."""


def refusal(
    cacheable: Cacheable,
    found: Iterable[FileTraits],
    files: Sequence[str] = (),
    *,
    exists: Callable[[str], bool] = lambda path: False,
    root: str = "",
) -> Bypass | None:
    """Whether what was read forbids to keep the result. Time macros: see :func:`moment`.

    ``files`` as :func:`include_files` gives them; ``exists`` tells whether a precompiled header stands beside one of
    them: the compilers take it instead and do not say so.
    """
    for path in files:
        place = absolute(path, root=root)
        beside = not path.startswith("/usr/") and (exists(f"{place}.gch") or exists(f"{place}.pch"))
        if path.endswith(_PRECOMPILED) or beside:
            return Bypass(BypassReason.PRECOMPILED_HEADER, path)
    for each in found:
        if each.embeds and (cacheable.language not in ASSEMBLY or "" in each.embedded or not each.embedded):
            return Bypass(BypassReason.EMBEDDED_FILE, cacheable.source)
        if "" in each.asks_for:
            return Bypass(BypassReason.EMBEDDED_FILE, "__has_include of a macro")
    return None


def moment(
    found: Sequence[tuple[str, FileTraits]],
    *,
    today: str,
    epoch_set: bool,
    mtime_ns: Callable[[str], int],
) -> str | None:
    """When the result holds, because of time macros: "" always, None never, else a text that must be the same again.

    ``__TIME__`` never holds, ``__DATE__`` for the day ``today`` (ISO; "" when nobody can tell: then never),
    ``__TIMESTAMP__`` while no file is touched. SOURCE_DATE_EPOCH (``epoch_set``) fixes the first two, and stands in
    the key.
    """
    conditions: list[str] = []
    if not epoch_set and any(each.time or (each.date and not today) for _, each in found):
        return None
    if not epoch_set and any(each.date for _, each in found):
        conditions.append(f"date={today}")
    if any(each.timestamp for _, each in found):
        conditions.extend(f"touched={path}@{mtime_ns(path)}" for path, _ in found if not path.startswith("/usr/"))
    return ";".join(conditions)


def written_since(changed_ns: int, started_ns: int) -> bool:
    """True when a file may have been written while the compile read it; such a result is not kept.

    Instants are of the wall clock; file systems take theirs from a clock that ticks every few milliseconds.
    """
    return changed_ns >= started_ns - _TICK_NS


_TICK_NS: Final = 10_000_000


# Whether a result holds in another checkout.


def bound_to(
    root: str, *, contents: Iterable[bytes], found: Sequence[tuple[str, FileTraits]], invocation: Invocation
) -> str:
    """``root`` when its name got into an object, or may have; "" when the object is the same in every checkout.

    ``contents``: the objects as they were written. Compressed ones hide names, and a name may count without standing
    in the object (``sizeof __FILE__``): then the root is bound as soon as the command line names it.
    """
    if not root:
        return ""
    name = root.encode("utf-8", "surrogateescape")
    if any(name in content for content in contents):
        return root
    if not any(root in word for argument in invocation.arguments for word in argument.words):
        return ""
    hidden = any(argument.flag in ("-g", "-f") and _hides(argument.value or "") for argument in invocation.arguments)
    spoken = any(each.names_itself and not path.startswith("/") for path, each in found)
    return root if hidden or spoken else ""


def _hides(value: str) -> bool:
    return value.startswith(("z", "lto", "embed-bitcode"))


# Texts that name the checkout: rules for make, messages.


def store_dependencies(content: bytes, *, root: str) -> bytes:
    """A text of the compiler with the root replaced by a mark. Raises nothing; a text with the mark stays wrong."""
    if not root:
        return content
    name, mark = _quoted_for_make(root), ROOT_MARK.encode()
    return _boundary(name).sub(lambda found: mark, content)


def replay_dependencies(content: bytes, *, root: str) -> bytes:
    """... and back, for another checkout."""
    return content.replace(ROOT_MARK.encode(), _quoted_for_make(root)) if root else content


def _quoted_for_make(path: str) -> bytes:
    text = path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")
    return text.encode("utf-8", "surrogateescape")


def _boundary(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![\w./-])" + re.escape(name) + rb"(?=/|[\s:]|$)")
