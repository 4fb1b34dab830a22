"""Flag tables, made for looking up one argument fast: exact names in one dictionary, joined ones by their beginning."""

from collections.abc import Iterable
from enum import Enum
from typing import Final

import msgspec

from corral.compile.model import Argument, BypassReason, Category

_STEM: Final = 2
_REMEMBERED_MAX: Final = 10_000


class Shape(Enum):
    """Where the value of a flag stands."""

    ALONE = "alone"
    JOINED = "joined"
    SEPARATE = "separate"
    EITHER = "either"


class Role(Enum):
    """What the parser does with a flag beyond keeping it."""

    PLAIN = "plain"
    MODE = "mode"
    LANGUAGE = "language"
    OUTPUT = "output"
    DEPENDENCY = "dependency"
    PREPROCESSOR = "preprocessor"  # flags inside of a flag: -Wp,-MD,FILE
    INPUT = "input"  # /Tc, /Tp
    LANGUAGE_OF_ALL = "language of all"  # /TC, /TP
    SIDE_FILE = "side file"
    END = "end"  # /link: the rest belongs to another program


class Spec(msgspec.Struct, frozen=True):
    """One row: the spelling, where its value stands, what it is about.

    Attributes:
        name: also the flag's canonical name, unless ``canonical`` is another one.
        bypass: why a compile with this flag is not ours; None when it is.
    """

    name: str
    shape: Shape
    category: Category
    role: Role = Role.PLAIN
    bypass: BypassReason | None = None
    canonical: str = ""


class FlagTable:
    """The flags of one family. ``find`` answers for one argument.

    Attributes:
        remembered: words that are an argument by themselves and have no role, as they were read before: a build
            repeats its flags for every file.
    """

    def __init__(self, specs: Iterable[Spec]) -> None:
        self.rows: dict[str, Spec] = {}
        self.remembered: dict[str, Argument] = {}
        self._exact: dict[str, Spec] = {}
        self._joined: dict[str, list[tuple[str, Spec]]] = {}
        for spec in specs:
            if spec.name in self.rows:
                raise ValueError(f"{spec.name} stands twice in the table")
            self.rows[spec.name] = spec
            if spec.shape is not Shape.JOINED:
                self._exact[spec.name] = spec
            if spec.shape in (Shape.JOINED, Shape.EITHER):
                self._joined.setdefault(spec.name[:_STEM], []).append((spec.name, spec))
        for names in self._joined.values():
            names.sort(key=lambda pair: -len(pair[0]))  # the longest name that fits is meant

    def find(self, argument: str) -> tuple[Spec | None, bool]:
        """The row for an argument, and whether its value is joined to it. An exact name comes first."""
        spec = self._exact.get(argument)
        if spec is not None:
            return spec, False
        for name, joined in self._joined.get(argument[:_STEM], ()):
            if argument.startswith(name):
                return joined, True
        return None, False

    def remember(self, word: str, argument: Argument) -> None:
        """Keep the reading of a word that always means the same."""
        if len(self.remembered) >= _REMEMBERED_MAX:
            self.remembered.clear()
        self.remembered[word] = argument
