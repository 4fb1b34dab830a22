"""What command lines of compilers mean."""

import pytest

from corral.compile import grammars
from corral.compile.grammars.names import family_of
from corral.compile.grammars.response import split_gnu, split_msvc
from corral.compile.model import Bypass, BypassReason, Category, Family, Invocation, Language, Mode


def _parsed(line: str, files: dict[str, bytes] | None = None) -> Invocation:
    found = grammars.parse(line.split(), read_file=(files or {}).get)
    assert isinstance(found, Invocation)
    return found


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gcc", Family.GNU),
        ("/usr/bin/g++", Family.GNU),
        ("cc", Family.GNU),
        ("c++", Family.GNU),
        ("gcc-12", Family.GNU),
        ("clang++-14", Family.GNU),
        ("aarch64-linux-gnu-gcc-12", Family.GNU),
        ("x86_64-w64-mingw32-g++-posix", Family.GNU),
        ("gcc13", Family.GNU),
        ("x86_64-linux-gnu-gcc-12.2.0", Family.GNU),
        ("cl", Family.MSVC),
        ("CL.EXE", Family.MSVC),
        ("C:\\VC\\bin\\cl.exe", Family.MSVC),
        ("clang-cl-14", Family.MSVC),
        ("ld", None),
        ("gcc-ar-12", None),
        ("ccache", None),
        ("nvcc", None),
        ("", None),
    ],
)
def test_a_compiler_is_known_by_its_name(name: str, family: Family | None) -> None:
    assert family_of(name) is family


def test_values_are_found_joined_and_separate() -> None:
    joined = _parsed("gcc -Iinc -DA=1 -oout.o -xc++ -MFa.d -MD -c a.c")
    separate = _parsed("gcc -I inc -D A=1 -o out.o -x c++ -MF a.d -MD -c a.c")

    for found in (joined, separate):
        assert [each.value for each in found.flags("-I", "-D")] == ["inc", "A=1"]
        assert (found.output, found.inputs) == ("out.o", (("a.c", Language.CXX),))
        assert found.dependency_file is not None
        assert found.dependency_file.path == "a.d"


def test_the_words_of_all_arguments_are_the_command_line() -> None:
    line = "gcc -Iinc -I inc2 -O2 -frobnicate -Wl,-z,now --param max-x=3 -c a.c -o a.o -Xlinker -z -- b.c"

    found = _parsed(line)

    assert [word for each in found.arguments for word in each.words] == line.split()[1:]


def test_a_flag_that_nobody_knows_is_kept_whole() -> None:
    argument = _parsed("gcc --frobnicate=7 -c a.c").arguments[0]

    assert (argument.flag, argument.category) == ("--frobnicate=7", Category.UNKNOWN)


def test_a_value_that_looks_like_a_source_is_no_input() -> None:
    found = _parsed("gcc -include a.h -MT b.c -Xlinker c.c -target x86_64 -c d.c")

    assert found.inputs == (("d.c", Language.C),)


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("gcc -c a.c", Mode.COMPILE),
        ("gcc a.c", Mode.LINK),
        ("gcc -S a.c", Mode.ASSEMBLE),
        ("gcc -c -S a.c", Mode.ASSEMBLE),
        ("gcc -c -E a.c", Mode.PREPROCESS),
        ("gcc -c -M a.c", Mode.DEPENDENCIES),
        ("gcc -MM a.c", Mode.DEPENDENCIES),
        ("gcc -fsyntax-only -c a.c", Mode.SYNTAX),
        ("gcc --version", Mode.QUERY),
        ("gcc -print-prog-name=cc1", Mode.QUERY),
        ("cl /c a.c", Mode.COMPILE),
        ("cl -c a.c", Mode.COMPILE),
        ("cl /EP a.c", Mode.PREPROCESS),
        ("cl a.c", Mode.LINK),
    ],
)
def test_the_mode_is_what_wins_in_the_driver(line: str, mode: Mode) -> None:
    assert _parsed(line).mode is mode


@pytest.mark.parametrize(
    ("line", "path", "system"),
    [
        ("gcc -MD -c src/a.c", "a.d", True),
        ("gcc -MMD -c src/a.c -o out/b.o", "out/b.d", False),
        ("gcc -MMD -c a.c -o out.x/b", "out.x/b.d", False),
        ("gcc -MD -MF deps/x -c a.c -o b.o", "deps/x", True),
        ("gcc -Wp,-MMD,.a.o.d -c a.c -o a.o", ".a.o.d", False),
        ("gcc -Wp,-MD,d/a.d -c a.c -o a.o", "d/a.d", True),
    ],
)
def test_rules_for_make_go_where_the_driver_writes_them(line: str, path: str, system: bool) -> None:
    rules = _parsed(line).dependency_file

    assert rules is not None
    assert (rules.path, rules.system_headers) == (path, system)


def test_response_files_are_expanded_where_they_stand_also_inside_each_other() -> None:
    files = {"one": b"-DA @two -DC", "two": b'\'-DB=x y\' \\\n "-I a\\"b"'}

    found = grammars.parse(["gcc", "-O2", "@one", "-c", "a.c", "@missing"], read_file=files.get)

    assert isinstance(found, Invocation)
    words = [word for each in found.arguments for word in each.words]
    assert words == ["-O2", "-DA", "-DB=x y", "\n", '-I a"b', "-DC", "-c", "a.c", "@missing"]
    assert found.response_files == ("one", "two")


def test_response_files_that_name_each_other_end_in_a_bypass() -> None:
    found = grammars.parse(["gcc", "@a"], read_file={"a": b"@a"}.get)

    assert found == Bypass(BypassReason.RESPONSE_FILE, "@a")


def test_quotes_of_gnu_and_of_windows_differ() -> None:
    assert split_gnu('a\\ b \'c "d\' e\\\\f "" g') == ["a b", 'c "d', "e\\f", "", "g"]
    assert split_msvc('a\\b "c d" e\\\\"f g" \\"h ""') == ["a\\b", "c d", "e\\f g", '"h', ""]


def test_flags_of_cl_take_a_slash_or_a_dash_and_a_colon() -> None:
    found = _parsed("cl /nologo -I inc /DX=1 -D Y /Fo:out\\a.obj /MD /W4 -c a.cpp /showIncludes")

    assert found.output == "out\\a.obj"
    assert [each.flag for each in found.arguments if each.value in ("inc", "X=1", "Y")] == ["/I", "/D", "/D"]
    assert found.inputs == (("a.cpp", Language.CXX),)


@pytest.mark.parametrize(
    ("line", "output", "language"),
    [
        ("cl /c a.c", "a.obj", Language.C),
        ("cl /c /Foout/ dir/a.cpp", "out/a.obj", Language.CXX),
        ("cl /c /Tpa.txt /Fob", "b.obj", Language.CXX),
        ("cl /c /TP a.c", "a.obj", Language.CXX),
        ("clang-cl /c /home/me/a.c", "a.obj", Language.C),
        ("clang --driver-mode=cl /c a.c", "a.obj", Language.C),
    ],
)
def test_objects_of_cl_are_named_as_cl_names_them(line: str, output: str, language: Language) -> None:
    found = _parsed(line)

    assert (found.output, found.inputs[0][1]) == (output, language)


def test_g_plus_plus_takes_c_for_c_plus_plus() -> None:
    assert _parsed("g++ -c a.c").inputs[0][1] is Language.CXX
    assert _parsed("clang++-14 -c a.i").inputs[0][1] is Language.CXX_PREPROCESSED
    assert _parsed("gcc -x c++ a.c -x none b.c").inputs == (("a.c", Language.CXX), ("b.c", Language.C))
