"""What makes two requests the same, and what does not."""

import pytest

from corral.compile import cacheability, grammars, key
from corral.compile.model import Cacheable, CompilerIdentity, IncludeSet, Invocation, Vendor

_GCC = CompilerIdentity(digest="aa", path="/usr/bin/gcc", vendor=None)


def _key(
    line: str,
    *,
    root: str = "/p",
    cwd: str = "",
    identity: CompilerIdentity = _GCC,
    environment: dict[str, str] | None = None,
) -> str:
    found = grammars.parse(line.split())
    assert isinstance(found, Invocation)
    relevant = key.relevant_environment(environment or {})
    judged = cacheability.judge(found, relevant)
    assert isinstance(judged, Cacheable)
    return key.request_key(
        key.key_inputs(found, judged, identity=identity, environment=relevant, cwd=cwd or root, root=root)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gcc -DX -c a.c", "gcc -DX= -c a.c"),
        ("gcc -DX=1 -UX -c a.c", "gcc -UX -DX=1 -c a.c"),
        ("gcc -Ia -Ib -c a.c", "gcc -Ib -Ia -c a.c"),
        ("gcc -iquote a -c a.c", "gcc -isystem a -c a.c"),
        ("gcc -O2 -O0 -c a.c", "gcc -O0 -O2 -c a.c"),
        ("gcc -c a.c", "gcc -c ./a.c"),
        ("gcc -c a.c", "gcc -g -c a.c"),
        ("gcc -c a.c", "gcc -Wall -c a.c"),
        ("gcc -include a.h -imacros b.h -c a.c", "gcc -imacros b.h -include a.h -c a.c"),
        ("gcc -MD -c a.c -o a.o", "gcc -MMD -c a.c -o a.o"),
        ("gcc -MD -c a.c -o a.o", "gcc -MD -c a.c -o b.o"),
        ("gcc -MD -MT x -c a.c", "gcc -MD -MQ x -c a.c"),
        ("gcc -x c -c a.c", "gcc -x c++ -c a.c"),
        ("gcc -DA -DB -c a.c", "gcc -DA-DB -c a.c"),
        ("gcc --frobnicate -c a.c", "gcc -c a.c"),
    ],
)
def test_what_may_change_the_bytes_changes_the_key(one: str, other: str) -> None:
    assert _key(one) != _key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gcc -D X -c a.c", "gcc -DX -c a.c"),
        ("gcc -I inc -c a.c", "gcc -Iinc -c a.c"),
        ("gcc -c a.c -o a.o", "gcc -c a.c -o elsewhere/b.o"),
        ("gcc -MD -MT x -MF a.d -c a.c", "gcc -MD -MT x -MF b.d -c a.c"),
        ("gcc -pipe -c a.c", "gcc -c a.c"),
    ],
)
def test_what_cannot_change_the_bytes_does_not_change_the_key(one: str, other: str) -> None:
    assert _key(one) == _key(other)


@pytest.mark.parametrize(
    "name", ["CPATH", "C_INCLUDE_PATH", "SOURCE_DATE_EPOCH", "LANG", "LC_ALL", "GCC_EXEC_PREFIX", "TZ"]
)
def test_a_variable_that_matters_changes_the_key(name: str) -> None:
    assert _key("gcc -c a.c", environment={name: "x"}) != _key("gcc -c a.c", environment={name: "y"})
    assert _key("gcc -c a.c", environment={name: "x"}) != _key("gcc -c a.c")


def test_variables_that_do_not_matter_do_not() -> None:
    assert _key("gcc -c a.c", environment={"HOME": "/x", "PWD": "/p/q", "MAKELEVEL": "1"}) == _key("gcc -c a.c")


def test_another_compiler_is_another_key() -> None:
    newer = CompilerIdentity(digest="bb", path="/usr/bin/gcc", vendor=None)

    assert _key("gcc -c a.c", identity=newer) != _key("gcc -c a.c")


def test_two_checkouts_share_what_names_them_only_as_a_place() -> None:
    line = "gcc -I{root}/inc -isystem {root} -include {root}/c.h -MD -MT {root}/a.o -c {root}/a.c -o {root}/a.o"

    assert _key(line.format(root="/one"), root="/one") == _key(line.format(root="/other"), root="/other")


def test_a_macro_that_holds_the_place_is_not_shared() -> None:
    assert _key("gcc -DHERE=/one -c a.c", root="/one") != _key("gcc -DHERE=/two -c a.c", root="/two")


def test_debug_information_holds_the_directory_unless_it_is_mapped() -> None:
    assert _key("gcc -g -c a.c", root="/one") != _key("gcc -g -c a.c", root="/two")
    assert _key("gcc -g0 -c a.c", root="/one") == _key("gcc -g0 -c a.c", root="/two")
    assert _key("gcc -Wa,-g -c a.s", root="/one") != _key("gcc -Wa,-g -c a.s", root="/two")
    for flag in ("-ffile-prefix-map={root}=.", "-fdebug-prefix-map={root}=/src"):
        line = f"gcc -g {flag} -c a.c"
        assert _key(line.format(root="/one"), root="/one") == _key(line.format(root="/two"), root="/two")
    useless = "gcc -g -ffile-prefix-map={root}/sub=x -c a.c"
    assert _key(useless.format(root="/one"), root="/one") != _key(useless.format(root="/two"), root="/two")


def test_an_object_that_holds_its_command_line_is_of_that_command_line_alone() -> None:
    clang = CompilerIdentity(digest="cc", path="/usr/bin/clang", vendor=Vendor.CLANG)
    gcc = CompilerIdentity(digest="aa", path="/usr/bin/gcc", vendor=Vendor.GCC)
    one, other = (f"clang -g -grecord-gcc-switches -c a.c -o {name}.o" for name in "ab")

    assert _key(one, identity=clang) != _key(other, identity=clang)
    assert _key(one, identity=gcc) == _key(other, identity=gcc)
    assert _key("clang-cl /Z7 /c a.c /Foa.obj", identity=clang) != _key("clang-cl /Z7 /c a.c /Fob.obj", identity=clang)
    assert _key("clang-cl /c a.c /Foa.obj", identity=clang) == _key("clang-cl /c a.c /Fob.obj", identity=clang)


def test_the_directory_below_the_root_counts() -> None:
    assert _key("gcc -I. -c ../a.c", cwd="/p/x") != _key("gcc -I. -c ../a.c", cwd="/p/y")


def test_a_result_is_named_by_all_it_read() -> None:
    request = _key("gcc -c a.c")
    sets = [
        IncludeSet(files=(("a.c", "1"), ("b.h", "2"))),
        IncludeSet(files=(("a.c", "1"), ("b.h", "3"))),
        IncludeSet(files=(("a.c", "1"),)),
        IncludeSet(files=(("a.c", "1"),), bound_to="/p"),
        IncludeSet(files=(("a.c", "1"),), moment="date=2030-01-01"),
        IncludeSet(files=(("a.c", "1b.h"),)),
    ]

    assert len({key.result_key(request, each) for each in sets}) == len(sets)
