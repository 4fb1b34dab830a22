"""What the text of a file can ask for, whatever its conditions say."""

import pytest

from corral.compile.directives import NOTHING, UNCLEAR, Directives, definition, definitions, directives


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('#include "a.h"', [("a.h", True)]),
        ("#include <sys/a.h>", [("sys/a.h", False)]),
        ("  #  include<a.h>// why", [("a.h", False)]),
        ("#import <a.h>", [("a.h", False)]),
        ('%:include "a.h"', [("a.h", True)]),
        ("#if 0\n#include <a.h>\n#else\n#include <b.h>\n#endif", [("a.h", False), ("b.h", False)]),
        ("/* why\n and how */ #include <a.h>", [("a.h", False)]),
        ("# /* why\n and how */ include /* here */ <a.h>", [("a.h", False)]),
        ("#inc\\\nlude <a.\\\nh>", [("a.h", False)]),
        ("#include \\  \n <a.h>\r\n", [("a.h", False)]),
        ("/* #include <a.h> */", []),
        ("/*\n#include <a.h>\n*/", [("a.h", False)]),
        ("#included <a.h>\n#pragma once\n// include <a.h>\n#define include <a.h>", []),
        ("/*\n#include's protect themselves\n*/", []),
    ],
)
def test_every_name_that_a_directive_can_mean_is_found(text: str, names: list[tuple[str, bool]]) -> None:
    assert directives(text.encode()) == Directives(names=tuple(names))


def test_include_next_may_mean_any_file_of_that_name() -> None:
    assert directives(b"# include_next <limits.h>\n") == Directives(every=("limits.h",))


def test_macros_are_told_and_those_with_more_behind_them_are_opaque() -> None:
    text = b"#include CONFIG /* from the build */\n#include WHICH(x)\n#include_next THAT\n"

    assert directives(text) == Directives(macros=("CONFIG",), opaque=("WHICH", "THAT"))


def test_trigraphs_are_not_read() -> None:
    assert directives(b"??=include <a.h>\n") == UNCLEAR


def test_a_macro_means_what_it_is_defined_as_anywhere() -> None:
    text = (
        b'#ifdef X\n# define CONFIG /* ours */ <x.h>\n#else\n#define CONFIG \\\n  "y.h"\n#endif\n#define CONFIGURED 1\n'
    )

    assert definitions(text, "CONFIG") == Directives(names=(("x.h", False), ("y.h", True)))
    assert definitions(text, "CONF") == NOTHING
    assert definition("OTHER") == Directives(macros=("OTHER",))


@pytest.mark.parametrize("body", ["", " 1", "(x) <x.h>", ' L"x.h"'])
def test_a_macro_that_is_no_name_makes_it_unclear(body: str) -> None:
    assert not definitions(f"#define CONFIG{body}\n".encode(), "CONFIG").clear or definition(body).opaque
