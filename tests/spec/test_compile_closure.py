"""What a compile read, as compilers tell it, and what of it forbids to keep the result."""

from typing import Any

from corral.compile import closure, grammars
from corral.compile.model import Bypass, BypassReason, Cacheable, FileTraits, Invocation, Language
from corral.compile.paths import find_root, relative

_CACHEABLE = Cacheable(source="a.c", language=Language.C, output="a.o")


def _absent(invocation: Invocation, **given: Any) -> tuple[str, ...]:
    found = closure.absent(invocation, **given)
    assert found is not None
    return found


def _parsed(line: str) -> Invocation:
    found = grammars.parse(line.split())
    assert isinstance(found, Invocation)
    return found


def test_rules_for_make_are_read_with_all_their_quoting() -> None:
    text = (
        "dir/a\\ b.o x.o: a.c /usr/include/stdc-predef.h w\\ e$$i\\#r:d.h \\\n"
        "  b\\\\\\ c.h a.c C:/x.h back\\slash.h\n\na.h:\n"
    )

    assert closure.parse_dependencies(text) == (
        "a.c",
        "/usr/include/stdc-predef.h",
        "w e$i#r:d.h",
        "b\\ c.h",
        "C:/x.h",
        "back\\slash.h",
    )


def test_a_target_with_a_drive_or_a_colon_ends_at_the_right_colon() -> None:
    assert closure.parse_dependencies("C:/out/a.o: a.c\n") == ("a.c",)
    assert closure.parse_dependencies("a\\:b.o: a.c") == ("a.c",)
    assert closure.parse_dependencies("") == ()


def test_the_tree_of_headers_is_taken_out_of_the_messages() -> None:
    stderr = (
        b". /usr/include/stdio.h\n.. x y.h\na.c:4:17: warning: unused\n    4 | int unused;\n"
        b"Multiple include guards may be useful for:\n./im.h\nb.h\n"
    )

    names, rest = closure.take_tree(stderr)

    assert names == ("/usr/include/stdio.h", "x y.h", "./im.h", "b.h")
    assert rest == b"a.c:4:17: warning: unused\n    4 | int unused;\n"


def test_the_notes_of_cl_are_taken_out_unless_the_user_asked() -> None:
    stdout = b"a.c\r\nNote: including file: b.h\r\nNote: including file:  c d.h\r\n"

    assert closure.take_notes(stdout, keep=False) == (("b.h", "c d.h"), b"a.c\r\n")
    assert closure.take_notes(stdout, keep=True) == (("b.h", "c d.h"), stdout)


def test_time_macros_are_found_and_bind_the_result_to_their_moment() -> None:
    date, time, stamp = (closure.traits(b"x __%b__;" % name) for name in (b"DATE", b"TIME", b"TIMESTAMP"))

    def moment(traits: FileTraits, *, epoch: bool = False, today: str = "2030-01-02") -> str | None:
        found = [("a.c", traits), ("/usr/include/x.h", FileTraits())]
        return closure.moment(found, today=today, epoch_set=epoch, mtime_ns=lambda path: 77)

    assert [moment(each) for each in (date, time, stamp)] == ["date=2030-01-02", None, "touched=a.c@77"]
    assert [moment(each, epoch=True) for each in (date, time, stamp)] == ["", "", "touched=a.c@77"]
    assert moment(date, today="") is None  # the compiler runs in another time zone than we
    assert moment(closure.traits(b"int __COUNTER__x = __COUNTER__;")) == ""  # the same source counts the same


def test_a_file_that_the_assembler_embeds_forbids_to_keep_the_result() -> None:
    for text in (b'asm(".incbin \\"x.bin\\"");', b'\t.include "a.inc"\n', b" #embed <x>\n", b'.incbin "x"'):
        assert closure.refusal(_CACHEABLE, [closure.traits(text)]) == Bypass(BypassReason.EMBEDDED_FILE, "a.c")
    for text in (b'#include "a.inc"\n', b"a.include = 1;", b"// embed"):
        assert closure.refusal(_CACHEABLE, [closure.traits(text)]) is None


def test_a_precompiled_header_beside_a_header_forbids_to_keep_the_result() -> None:
    refused = closure.refusal(_CACHEABLE, [], ["a.c", "p.h"], exists=lambda path: path == "/root/p.h.gch", root="/root")

    assert refused == Bypass(BypassReason.PRECOMPILED_HEADER, "p.h")


def test_a_file_written_while_the_compiler_ran_is_noticed() -> None:
    assert closure.written_since(10**9, 2 * 10**9) is False
    assert closure.written_since(2 * 10**9 - 1, 2 * 10**9) is True
    assert closure.written_since(3 * 10**9, 2 * 10**9) is True


def test_a_header_that_would_come_first_is_watched_for() -> None:
    there = {"/p/inc/sys", "/p/inc/sys/.", "/p/x.h"}

    names = _absent(
        _parsed("gcc -Iinc -c src/a.c"),
        files=("src/a.c", "lib/x.h", "/usr/include/sys/types.h", "/usr/include/c++/12/vector"),
        cwd="/p",
        root="/p",
        exists=there.__contains__,
    )

    assert {"inc/x.h", "src/x.h", "inc/vector", "src/sys", "inc/sys/sys", "inc/lib", "lib/x.h.gch"} <= set(names)
    assert "inc/sys" not in names
    assert "inc/types.h" not in names


def test_without_a_project_the_directory_of_the_source_is_watched_all_the_same() -> None:
    names = _absent(
        _parsed("gcc -I/p/inc -c a.c"),
        files=("/p/src/a.c", "/p/inc/x.h", "/usr/include/stdio.h"),
        cwd="/p/src",
        root="",
        exists={"/p/inc/x.h"}.__contains__,
    )

    assert {"/p/src/x.h", "/p/src/stdio.h", "/p/inc/x.h.gch"} <= set(names)


def test_more_places_than_can_be_watched_are_told_and_not_left_out() -> None:
    directories = [f"-Id{number}" for number in range(400)]
    files = ("a.c", *(f"d0/h{number}.h" for number in range(400)))

    found = closure.absent(
        _parsed(" ".join(("gcc", *directories, "-c", "a.c"))),
        files=files,
        cwd="/p",
        root="/p",
        exists=lambda path: False,
    )

    assert found is None


def test_a_file_that_was_asked_for_counts_when_it_is_there_and_when_it_is_not() -> None:
    asks = [closure.traits(b'#if __has_include("opt/late.h") || __has_include(<there.h>)')]
    invocation = _parsed("gcc -Iinc -c a.c")

    here = closure.present(
        invocation, files=("a.c",), cwd="/p", root="/p", exists={"/p/inc/there.h"}.__contains__, found=asks
    )
    missing = _absent(invocation, files=("a.c",), cwd="/p", root="/p", exists=lambda path: False, found=asks)

    assert here == ("inc/there.h",)
    assert {"inc/opt", "opt"} <= set(missing)


def test_an_object_that_holds_its_checkout_is_bound_to_it() -> None:
    plain, named = _parsed("gcc -c a.c"), _parsed("gcc -c /p/a.c")
    quiet, speaks = ("a.c", FileTraits()), ("a.c", closure.traits(b"sizeof(__FILE__)"))

    def bound(invocation: Invocation, content: bytes, found: tuple[str, FileTraits]) -> str:
        return closure.bound_to("/p", contents=[content], found=[found], invocation=invocation)

    assert bound(plain, b"..a.c..", speaks) == ""
    assert bound(plain, b"../p/a.c", quiet) == "/p"
    assert bound(named, b"", quiet) == ""
    assert bound(named, b"", speaks) == "/p"
    assert bound(_parsed("gcc -gz -g -c /p/a.c"), b"", quiet) == "/p"


def test_rules_for_make_move_from_checkout_to_checkout() -> None:
    rules = b"a.o: /one/a b/x.h \\\n /one/a\\ b/y.h /one/a\\ bc/z.h\n"

    stored = closure.store_dependencies(rules, root="/one/a b")

    assert closure.replay_dependencies(stored, root="/one/a b") == rules
    assert closure.replay_dependencies(stored, root="/two") == b"a.o: /one/a b/x.h \\\n /two/y.h /one/a\\ bc/z.h\n"


def test_a_root_is_marked_by_corral_before_git() -> None:
    marks = {"/w/p/.git", "/w/.corral"}

    assert find_root("/w/p/src", marks.__contains__) == "/w"
    assert find_root("/w/p/src", {"/w/p/.git"}.__contains__) == "/w/p"
    assert find_root("/elsewhere", marks.__contains__) == ""


def test_names_are_relative_to_the_root_and_never_resolved() -> None:
    def named(path: str) -> str:
        return relative(path, cwd="/p/sub", root="/p")

    assert [named(each) for each in ("x.h", "./x.h", "../x.h", "/p/x.h", "/pq/x.h", "/p", ".")] == [
        "sub/x.h",
        "sub/x.h",
        "sub/../x.h",
        "x.h",
        "/pq/x.h",
        ".",
        "sub",
    ]
    assert relative("x.h", cwd="/q", root="") == "/q/x.h"


def test_what_the_assembler_embeds_belongs_to_the_closure_of_a_source_in_assembly() -> None:
    source = closure.traits(b'.include "i.inc"\n.incbin "b.bin", 1\n')
    made = closure.traits(b".macro m name\n.incbin \\name\n.endm\n")
    invocation = _parsed("gcc -Iinc -c sub/a.s")
    there = {"/p/inc/i.inc", "/p/b.bin", "/p/inc/b.bin"}
    assembly = Cacheable(source="sub/a.s", language=Language.ASSEMBLER, output="a.o")

    found = closure.present(
        invocation, files=("sub/a.s",), cwd="/p", root="/p", exists=there.__contains__, found=[source]
    )
    missing = _absent(invocation, files=("sub/a.s",), cwd="/p", root="/p", exists=there.__contains__, found=[source])

    assert set(found) == {"inc/i.inc", "b.bin"}
    assert "i.inc" in missing
    assert closure.refusal(assembly, [source]) is None
    assert closure.refusal(assembly, [made]) == Bypass(BypassReason.EMBEDDED_FILE, "sub/a.s")
    assert closure.refusal(_CACHEABLE, [source]) == Bypass(BypassReason.EMBEDDED_FILE, "a.c")
