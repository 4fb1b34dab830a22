"""Which compiles may be kept, and which flag is to blame when one may not."""

import pytest

from corral.compile import cacheability, grammars
from corral.compile.model import Bypass, BypassReason, Cacheable, Invocation


def _judged(line: str, environment: dict[str, str] | None = None) -> Cacheable | Bypass:
    found = grammars.parse(line.split())
    assert isinstance(found, Invocation)
    return cacheability.judge(found, environment or {})


@pytest.mark.parametrize(
    "line",
    [
        "gcc -c a.c",
        "gcc -O2 -g -Wall -pipe -fPIC -march=x86-64 -MMD -MF a.d -c a.c -o a.o",
        "gcc -Wp,-MMD,a.d -Wp,-D_FORTIFY_SOURCE=2 -c a.c -o a.o",
        "gcc -c a.S -o a.o -Wa,--noexecstack",
        "gcc -c a.s",
        "gcc -c /dev/shm/project/a.c -o /dev/shm/project/a.o",
        "gcc -c a.i",
        "clang -flto -c a.c",
        "gcc -flto -frandom-seed=1 -c a.c",
        "gcc -flto -fno-lto -c a.c",
        "gcc -g0 -ggdb3 -c a.c",
        "gcc -fsanitize=address -c a.c",
        "clang -Xclang -fno-validate-pch -mllvm -inline-threshold=9 -c a.c",
        "cl /nologo /c /O2 /Z7 /MD a.c /Foa.obj",
        "g++-12 -std=c++20 -fno-exceptions -include config.h -c a.cc",
    ],
)
def test_an_ordinary_compile_may_be_kept(line: str) -> None:
    assert isinstance(_judged(line), Cacheable)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("gcc a.c -o a", "not-a-compile", "no -c"),
        ("gcc -E -c a.c", "not-a-compile", "-E"),
        ("gcc -S a.c", "not-a-compile", "-S"),
        ("gcc -MM a.c", "not-a-compile", "-MM"),
        ("gcc --version", "not-a-compile", "--version"),
        ("gcc -c", "no-input", ""),
        ("gcc -c a.c b.c", "several-inputs", "a.c b.c"),
        ("gcc -x c -c - -o a.o", "stdin", ""),
        ("gcc -c a.c -o /dev/null", "device", "/dev/null"),
        ("gcc -c -x c /dev/null -o a.o", "device", "/dev/null"),
        ("gcc -c a.c -o -", "output-to-stdout", ""),
        ("gcc -MD -MF - -c a.c", "output-to-stdout", ""),
        ("gcc -c a.h", "precompiled-header", "a.h"),
        ("gcc -x c++-header -c a.hpp -o a.gch", "precompiled-header", "a.hpp"),
        ("clang -include-pch a.pch -c a.c", "precompiled-header", "-include-pch a.pch"),
        ("gcc -c a.f90", "language", "a.f90"),
        ("gcc -x cuda -c a.c", "language", "a.c"),
        ("gcc -save-temps=obj -c a.c", "side-effect", "-save-temps=obj"),
        ("gcc -gsplit-dwarf -c a.c", "side-effect", "-gsplit-dwarf"),
        ("gcc -fdump-tree-all -c a.c", "side-effect", "-fdump-tree-all"),
        ("gcc -fcallgraph-info=su -c a.c", "side-effect", "-fcallgraph-info=su"),
        ("gcc -fdiagnostics-format=sarif-file -c a.c", "side-effect", "-fdiagnostics-format=sarif-file"),
        ("clang -MJ a.json -c a.c", "side-effect", "-MJ a.json"),
        ("clang -save-stats -c a.c", "side-effect", "-save-stats"),
        ("clang -fbasic-block-sections=list=a.txt -c a.c", "side-effect", "-fbasic-block-sections=list=a.txt"),
        ("clang --config-system-dir=/etc/c -c a.c", "side-effect", "--config-system-dir=/etc/c"),
        ("clang -ftime-trace -c a.c", "side-effect", "-ftime-trace"),
        ("clang --serialize-diagnostics a.dia -c a.c", "side-effect", "--serialize-diagnostics a.dia"),
        ("clang -Xclang -emit-module -c a.c", "side-effect", "-Xclang -emit-module"),
        ("gcc -Wa,-alh=a.lst -c a.c", "side-effect", "-Wa,-alh=a.lst"),
        ("gcc -Wp,-MD,a.d,-P -c a.c", "side-effect", "-Wp,-MD,a.d,-P"),
        ("gcc --coverage -c a.c", "profile", "--coverage"),
        ("gcc -ftest-coverage -c a.c", "profile", "-ftest-coverage"),
        ("gcc -fprofile-use=a.gcda -c a.c", "profile", "-fprofile-use=a.gcda"),
        ("gcc -fplugin=a.so -c a.c", "plugin", "-fplugin=a.so"),
        ("g++ -fmodules-ts -c a.cc", "modules", "-fmodules-ts"),
        ("clang -fmodule-file=a.pcm -c a.cc", "modules", "-fmodule-file=a.pcm"),
        ("gcc -flto=auto -c a.c", "flag", "-flto=auto without -frandom-seed"),
        ("gcc -MG -MD -c a.c", "flag", "-MG"),
        ("gcc -v -c a.c", "flag", "-v"),
        ("gcc -c a.c -o", "flag", "-o"),
        ("gcc -c a.c -I", "flag", "-I"),
        ("gcc -specs=local -c a.c", "flag", "-specs=local"),
        ("gcc -DT=__TIME__ -c a.c", "time-macro", "-DT=__TIME__"),
        ("cl /c /Zi a.c", "side-effect", "/Zi"),
        ("cl /c /Yuall.h a.c", "precompiled-header", "/Yuall.h"),
        ("cl /c /Fdx.pdb a.c", "side-effect", "/Fdx.pdb"),
        ("cl /c /clr a.c", "flag", "/clr"),
    ],
)
def test_what_is_not_for_us_is_refused_with_the_flag_that_is_to_blame(line: str, reason: str, detail: str) -> None:
    assert _judged(line) == Bypass(BypassReason(reason), detail)


def test_a_variable_that_makes_the_compiler_write_more_is_a_reason() -> None:
    assert _judged("gcc -c a.c", {"DEPENDENCIES_OUTPUT": "x.d"}) == Bypass(
        BypassReason.ENVIRONMENT, "DEPENDENCIES_OUTPUT"
    )


def test_a_date_that_is_fixed_by_the_environment_is_no_reason() -> None:
    fixed = {"SOURCE_DATE_EPOCH": "1"}

    assert isinstance(_judged("gcc -DT=__TIME__ -c a.c", fixed), Cacheable)
    assert isinstance(_judged("gcc -DT=__TIMESTAMP__ -c a.c", fixed), Bypass)


def test_code_for_the_processor_at_hand_stays_at_hand() -> None:
    native, portable = _judged("gcc -march=native -c a.c"), _judged("gcc -march=x86-64 -c a.c")

    assert isinstance(native, Cacheable)
    assert isinstance(portable, Cacheable)
    assert (native.remote, portable.remote) == (False, True)


def test_files_that_no_list_tells_are_named() -> None:
    judged = _judged("clang -fsanitize-ignorelist=skip.txt -fsanitize-coverage-allowlist=take.txt -c a.c")

    assert isinstance(judged, Cacheable)
    assert judged.reads == ("skip.txt", "take.txt")
