"""Projects made up at random: whatever a compiler reads of them, the scanner has foreseen, or says it cannot tell."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corral.compile import closure
from corral.compile.files import FileTable
from corral.compile.ports import CompileRequest
from corral.compile.remote.asking import ask_closure
from corral.compile.remote.layout import CannotShip
from corral.compile.remote.scanning import IncludeScanner
from corral.kernel.clock import SystemClock
from corral.testing.compiles import compile_request

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")

_DIRECTORIES = ("", "inc", "inc/deep", "more")
_NAMES = ("a.h", "b.h", "c.h", "deep/a.h")
_FORMS = (
    '#include "{name}"',
    "#include <{name}>",
    "#ifdef FLAG\n#include <{name}>\n#endif",
    '#define WHICH "{name}"\n#ifdef FLAG\n#include WHICH\n#endif\n#undef WHICH',
    "#if __has_include(<{name}>)\n#include <{name}>\n#endif",
    "#ifdef NEXT\n#include_next <{name}>\n#endif",
    "#ifdef OTHER\n#include OTHER\n#endif",
    "/* and\n so */ #include \\\n <{name}>",
)
_ALWAYS = (("", "b.h"), ("inc", "a.h"), ("inc", "b.h"), ("inc", "c.h"), ("inc/deep", "a.h"))
"""Most names are found somewhere, or nothing would be compared."""
_FLAGS = ("-Imore", "-I.", "-iquote", "-isystem", "-DFLAG", "-DNEXT", '-DOTHER="b.h"', "-include")
_WITH_VALUE = {"-iquote": "more", "-isystem": "inc", "-idirafter": "more", "-include": "inc/c.h"}

_text = st.lists(st.tuples(st.sampled_from(_FORMS), st.sampled_from(_NAMES)), max_size=4)


@dataclass(frozen=True)
class _Project:
    source: list[tuple[str, str]]
    headers: dict[tuple[str, str], list[tuple[str, str]]]
    flags: list[str]


_projects = st.builds(
    _Project,
    source=_text.filter(bool),
    headers=st.builds(
        dict[tuple[str, str], list[tuple[str, str]]].__or__,
        st.fixed_dictionaries(dict.fromkeys(_ALWAYS, _text)),
        st.dictionaries(st.tuples(st.sampled_from(_DIRECTORIES), st.sampled_from(_NAMES[:3])), _text, max_size=8),
    ),
    flags=st.lists(st.sampled_from(_FLAGS), unique=True, max_size=6),
)


_NEXT = _Project(
    source=[("#include <{name}>", "a.h")],
    headers={("inc", "a.h"): [("#include_next <{name}>", "a.h")], ("more", "a.h"): []},
    flags=["-isystem", "-idirafter"],
)


@settings(max_examples=40)
@example(project=_NEXT)
@given(project=_projects)
def test_what_a_compiler_reads_was_foreseen_or_nobody_could_tell(project: _Project) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ".corral").touch()
        for directory in _DIRECTORIES:
            (folder / directory).mkdir(exist_ok=True)
        for (directory, header), text in project.headers.items():
            (folder / directory / header).write_text("#pragma once\n" + _written(text))
        (folder / "a.c").write_text(_written(project.source))
        words = [word for flag in project.flags for word in (flag, *filter(None, [_WITH_VALUE.get(flag)]))]
        request = compile_request(folder, ["gcc", *words, "-Iinc", "-c", "a.c", "-o", "a.o"])

        read, foreseen = asyncio.run(_both(request))

        assert read is None or foreseen is None or read <= foreseen


def _written(text: list[tuple[str, str]]) -> str:
    return "".join(form.format(name=name) + "\n" for form, name in text)


async def _both(request: CompileRequest) -> tuple[set[str] | None, set[str] | None]:
    """What the preprocessor has read (None: it said no), and what the scanner has foreseen (None: it cannot tell)."""
    hashes = FileTable(closure.traits, SystemClock().now_s)
    now_s = SystemClock().now_s()
    reachable = await IncludeScanner().reach(request, hashes, now_s=now_s)
    try:
        asked = await ask_closure(request, hashes, now_s=now_s)
    except CannotShip:
        asked = None
    read = None if asked is None else {path for path, _ in asked.files}
    foreseen = None if reachable is None else {path for path, _ in reachable.include_set.files}
    return read, foreseen
