"""Where a compiler looks for headers, and which files lie there."""

import os
from pathlib import Path

import pytest

from corral.compile import grammars
from corral.compile.model import Bypass
from corral.compile.remote.listings import Listings
from corral.compile.remote.search_path import SearchPath, flags_that_matter, read_search_path

_TOLD = """ignoring nonexistent directory "/usr/local/include/x86_64-linux-gnu"
ignoring nonexistent directory "gen"
ignoring duplicate directory "../include"
#include "..." search starts here:
 quoted
#include <...> search starts here:
 .
 ../include
 /usr/include
End of search list.
"""


def test_directories_are_told_in_their_order_and_those_that_are_not_there() -> None:
    found = read_search_path(_TOLD, cwd="/p/library", root="/p")

    assert found == SearchPath(
        quotes=("library/quoted",),
        brackets=("library", "library/../include", "/usr/include"),
        ignored=("/usr/local/include/x86_64-linux-gnu", "library/gen"),
    )


@pytest.mark.parametrize(
    "told", ["", _TOLD.partition("End")[0], _TOLD.replace("/usr/include", "/F (framework directory)")]
)
def test_what_is_not_understood_is_no_search_path(told: str) -> None:
    assert read_search_path(told, cwd="/p", root="/p") is None


def test_sources_that_are_compiled_alike_share_one_search_path() -> None:
    def flags(line: str) -> tuple[str, ...]:
        invocation = grammars.parse(line.split())
        assert not isinstance(invocation, Bypass)
        return flags_that_matter(invocation)

    one = flags("gcc -std=c11 -O2 -g -Wall -DNAME=a -Iinc -isystem sys -MD -MF a.d -c a.c -o a.o")

    assert one == flags("gcc -std=c11 -O3 -DNAME=b -Iinc -isystem sys -include c.h -c b.c") != flags("gcc -Iinc -c a.c")
    assert one == ("-std=c11", "-Iinc", "-isystem", "sys")


@pytest.mark.parametrize("others", [0, 100])
def test_a_file_that_comes_or_goes_is_noticed_and_a_directory_is_none(others: int, tmp_path: Path) -> None:
    listings, now_ns = Listings(), 10**19  # long after all that is written here
    for name in ("there.h", *(f"{number}.o" for number in range(others))):  # with so many it is not listed again
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    names = ("there.h", "folder", "gone.h", "later/x.h")

    def held() -> list[bool]:
        return [listings.holds(f"{tmp_path}/{name}") for name in names]

    assert listings.refresh(now_ns)
    assert held() == [True, False, False, False]
    assert listings.refresh(now_ns)
    (tmp_path / "unrelated.o").touch()
    assert listings.refresh(now_ns)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "x.h").touch()
    os.rename(tmp_path / "there.h", tmp_path / "gone.h")
    assert not listings.refresh(now_ns)
    assert held() == [False, False, True, True]
