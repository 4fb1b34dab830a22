"""The wrapper and the daemon with real compilers: whatever happens, what comes out is what the compiler makes."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from corral.compile.control import tell
from corral.entry import WRAPPER
from corral.testing.compiles import Compiles, aged, compiles, has_ended, wait_until

pytestmark = [
    pytest.mark.skipif(not Path(WRAPPER).is_file(), reason=f"{WRAPPER} is not built: make native"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]
COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed"))
    for name in ("gcc", "clang")
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Compiles]:
    """One daemon for the tests that only look at results."""
    with compiles() as ours:
        yield ours


@pytest.fixture
def own() -> Iterator[Compiles]:
    """A daemon for one test alone."""
    with compiles() as ours:
        yield ours


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def make_project(place: Path) -> Path:
    (place / "include").mkdir(parents=True)
    (place / ".corral").touch()
    (place / "include" / "config.h").write_text("#define ANSWER 42\n")
    (place / "main.c").write_text(
        '#include <stdio.h>\n#include "config.h"\nint main(void) { return printf("%d", ANSWER); }\n'
    )
    aged(place / "main.c", place / "include" / "config.h")
    return place


def change(file: Path, text: str) -> None:
    file.write_text(text)
    aged(file)


def plain(*words: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    environment = {"PATH": os.environ["PATH"]}  # as the wrappers have it: no language for messages
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, check=False)


COMPILE = ("-Iinclude", "-O2", "-g", "-c", "main.c", "-o", "main.o")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_second_compile_is_a_hit_with_the_same_bytes(shared: Compiles, project: Path, compiler: str) -> None:
    plain(compiler, *COMPILE, cwd=project)
    expected = (project / "main.o").read_bytes()

    for _ in range(2):
        (project / "main.o").unlink()
        done = shared.run(compiler, *COMPILE, cwd=project)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert (project / "main.o").read_bytes() == expected
        shared.events()

    assert shared.outcomes()[-2:] == ["local-run", "local-hit"]


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_clang_with_the_command_line_of_cl_has_its_objects_words_and_lists_of_headers_replayed(
    own: Compiles, project: Path
) -> None:
    cl = project / "clang-cl"
    cl.symlink_to(shutil.which("clang") or "")
    (project / "a.c").write_text('#include "config.h"\nint f(void) { int unused; return ANSWER; }\n')
    (project / "all.rsp").write_text("/Iinclude /c /W4 /Z7 /Brepro /showIncludes a.c /Foout.obj")
    aged(project / "a.c", project / "all.rsp")

    def compiled() -> tuple[int, bytes, bytes, bytes]:
        (project / "out.obj").unlink(missing_ok=True)
        done = own.run(str(cl), "@all.rsp", cwd=project)
        own.events()
        return done.returncode, done.stdout, done.stderr, (project / "out.obj").read_bytes()

    first, second = compiled(), compiled()
    done = plain(str(cl), "@all.rsp", cwd=project)
    made = (done.returncode, done.stdout, done.stderr, (project / "out.obj").read_bytes())
    change(project / "include" / "config.h", "#define ANSWER 43\n")
    third = compiled()
    own.run(str(cl), "/Iinclude", "/c", "/Zi", "a.c", cwd=project)

    assert first == second == made
    assert b"including file" in done.stdout
    assert b"unused" in done.stderr
    assert third[3] != first[3]
    assert [(event.outcome.value, event.why) for event in own.events()] == [
        ("local-run", "first-time"),
        ("local-hit", ""),
        ("local-run", "header"),
        ("bypass", "side-effect"),
    ]


def test_a_changed_header_is_compiled_anew_and_a_header_changed_back_is_a_hit(own: Compiles, project: Path) -> None:
    header = project / "include" / "config.h"
    own.run("gcc", *COMPILE, cwd=project)
    first = (project / "main.o").read_bytes()
    own.events()

    change(header, "#define ANSWER 43\n")
    own.run("gcc", *COMPILE, cwd=project)
    second = (project / "main.o").read_bytes()
    own.events()
    change(header, "#define ANSWER 42\n")
    own.run("gcc", *COMPILE, cwd=project)

    assert own.outcomes() == ["local-run", "local-run", "local-hit"]
    assert own.events()[1].why == "header"
    assert first != second
    assert (project / "main.o").read_bytes() == first


def test_a_new_header_that_would_be_found_earlier_is_noticed(own: Compiles, project: Path) -> None:
    """ccache's manual: direct mode does not see it."""
    (project / "before").mkdir()
    words = ("-Ibefore", *COMPILE)
    own.run("gcc", *words, cwd=project)
    own.events()

    change(project / "before" / "config.h", "#define ANSWER 7\n")
    own.run("gcc", *words, cwd=project)
    made = (project / "main.o").read_bytes()
    plain("gcc", *words, cwd=project)

    assert own.outcomes() == ["local-run", "local-run"]
    assert made == (project / "main.o").read_bytes()


def test_same_size_and_same_time_stamp_do_not_hide_a_change(own: Compiles, project: Path) -> None:
    header = project / "include" / "config.h"
    stamp = header.stat()
    own.run("gcc", *COMPILE, cwd=project)
    own.events()

    header.write_text("#define ANSWER 99\n")
    os.utime(header, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    aged(header)
    own.run("gcc", *COMPILE, cwd=project)

    assert own.outcomes() == ["local-run", "local-run"]


def test_a_time_stamp_in_the_future_costs_speed_and_nothing_else(own: Compiles, project: Path) -> None:
    """A clock that was set back leaves such files."""
    header = project / "include" / "config.h"
    os.utime(header, (4_000_000_000, 4_000_000_000))
    own.run("gcc", *COMPILE, cwd=project)

    header.write_text("#define ANSWER 11\n")
    os.utime(header, (4_000_000_000, 4_000_000_000))
    own.run("gcc", *COMPILE, cwd=project)
    made = (project / "main.o").read_bytes()
    plain("gcc", *COMPILE, cwd=project)

    assert made == (project / "main.o").read_bytes()
    assert [event.why for event in own.events()] == ["not-stored", "not-stored"]


def test_a_header_that_appears_beside_the_source_is_noticed_without_a_mark_on_the_project_too(
    own: Compiles, project: Path
) -> None:
    (project / ".corral").unlink()
    own.run("gcc", *COMPILE, cwd=project)
    own.events()

    change(project / "config.h", "#define ANSWER 7\n")
    own.run("gcc", *COMPILE, cwd=project)
    made = (project / "main.o").read_bytes()
    plain("gcc", *COMPILE, cwd=project)

    assert own.outcomes() == ["local-run", "local-run"]
    assert made == (project / "main.o").read_bytes()


def test_another_assembler_that_the_driver_would_run_is_another_compiler(own: Compiles, project: Path) -> None:
    tools = project / "tools"
    tools.mkdir()
    shutil.copy(os.path.realpath("/usr/bin/as"), tools / "as")
    own.run("gcc", *COMPILE, cwd=project)
    own.run("gcc", f"-B{tools}", *COMPILE, cwd=project)
    own.events()

    with (tools / "as").open("ab") as file:
        file.write(b"of another build")
    own.run("gcc", f"-B{tools}", *COMPILE, cwd=project)
    own.events()  # told when it is stored, which may be after the hit
    own.run("gcc", *COMPILE, cwd=project)

    assert own.outcomes() == ["local-run", "local-run", "local-run", "local-hit"]
    assert own.events()[2].why == "compiler"


def test_two_checkouts_share_their_results(own: Compiles, tmp_path: Path) -> None:
    one, two = make_project(tmp_path / "one"), make_project(tmp_path / "elsewhere" / "two")
    words = ("-Iinclude", "-O2", "-MD", "-MF", "main.d", "-c", "main.c", "-o", "main.o")

    own.run("gcc", *words, cwd=one)
    own.events()
    own.run("gcc", *words, cwd=two)

    assert own.outcomes() == ["local-run", "local-hit"]
    for name in ("main.o", "main.d"):
        made = (two / name).read_bytes()
        plain("gcc", *words, cwd=two)
        assert made == (two / name).read_bytes()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "rules",
    [("-MD",), ("-MMD",), ("-MMD", "-MP", "-MT", "all: $x", "-MF", "deps/x.d"), ("-Wp,-MMD,x.d",), ("-MD", "-MFx.d")],
    ids=" ".join,
)
@pytest.mark.parametrize("debug", [(), ("-g",)], ids=["plain", "debug"])
def test_make_rules_are_the_compilers_own_when_compiled_and_when_replayed(
    shared: Compiles, project: Path, compiler: str, rules: tuple[str, ...], debug: tuple[str, ...]
) -> None:
    (project / "deps").mkdir()
    change(project / "include" / "config.h", f"#define ANSWER 42 /* {compiler} {rules} {debug} */\n")
    words = (compiler, *debug, *rules, "-Iinclude", "-c", "main.c", "-o", "main.o")
    expected = plain(*words, cwd=project)
    kept = {file: file.read_bytes() for file in (*project.rglob("*.d"), project / "main.o")}
    assert len(kept) == 2

    for outcome in ("local-run", "local-hit"):
        for file in kept:
            file.unlink()
        done = shared.run(*words, cwd=project)
        assert (done.returncode, done.stderr) == (0, expected.stderr)
        assert {file: file.read_bytes() for file in kept} == kept
        assert shared.outcomes()[-1] == outcome, shared.events()[-1]


def test_warnings_are_replayed(shared: Compiles, project: Path) -> None:
    change(project / "warns.c", "int f(void) { int unused; return 1; }\n")
    words = ("gcc", "-Wall", "-c", "warns.c")
    expected = plain(*words, cwd=project)
    assert b"unused" in expected.stderr

    first, _, second = shared.run(*words, cwd=project), shared.events(), shared.run(*words, cwd=project)

    assert (first.stderr, second.stderr) == (expected.stderr, expected.stderr)
    assert shared.outcomes()[-2:] == ["local-run", "local-hit"]


def test_a_compile_that_fails_says_what_the_compiler_says_and_is_never_stored(own: Compiles, project: Path) -> None:
    change(project / "bad.c", "int f(void) { return nothing; }\n")
    expected = plain("gcc", "-c", "bad.c", cwd=project)

    for _ in range(2):
        done = own.run("gcc", "-c", "bad.c", cwd=project)
        assert (done.returncode, done.stderr) == (expected.returncode, expected.stderr)

    wait_until(lambda: own.outcomes() == ["failed", "failed"])
    assert not own.entries("results")


def test_what_is_not_a_cacheable_compile_passes_through(shared: Compiles, project: Path) -> None:
    change(project / "empty.c", "int x;\n")
    (project / "words").write_text("-c main.c -Iinclude -DQUOTED='\"a b\"' -o by-file.o")
    for words in (
        ("gcc", "-E", "empty.c"),
        ("gcc", "-S", "empty.c", "-o", "-"),
        ("gcc", "-M", "-Iinclude", "main.c"),
        ("gcc", "-c", "empty.c", "main.c", "-Iinclude"),
        ("gcc", "-x", "c", "-c", "-", "-o", "stdin.o"),
        ("gcc", "-c", "empty.c", "-o", "/dev/null"),
        ("gcc", "-Iinclude", "main.c", "-o", "program"),
        ("gcc", "--version"),
        ("gcc",),
        ("gcc", "-c", "--coverage", "empty.c"),
        ("gcc", "-c", "-gsplit-dwarf", "-g", "empty.c"),
        ("gcc", "-x", "c-header", "empty.c", "-o", "empty.h.gch"),
    ):
        expected = plain(*words, cwd=project)
        done = shared.run(*words, cwd=project)
        assert (done.returncode, done.stdout, done.stderr) == (expected.returncode, expected.stdout, expected.stderr)
        assert shared.events()[-1].outcome.value == "bypass", words

    shared.run("gcc", "@words", cwd=project)
    assert shared.events()[-1].outcome.value == "local-run"
    assert (project / "by-file.o").is_file()


def test_stdin_reaches_the_compiler(shared: Compiles, project: Path) -> None:
    done = shared.run("gcc", "-E", "-P", "-x", "c", "-", cwd=project, stdin=None, input=b"#define A 5\nA\n")

    assert done.stdout == b"5\n"


def test_the_object_that_a_response_file_names_is_left_alone_once_it_is_there(own: Compiles, project: Path) -> None:
    """What was read is asked of gcc afterwards, when make has gone on already."""
    (project / "all.rsp").write_text("-Iinclude -g -MMD -c main.c -o main.o")
    aged(project / "all.rsp")
    plain("gcc", "@all.rsp", cwd=project)
    made, rules = (project / "main.o").read_bytes(), (project / "main.d").read_bytes()

    for _ in range(2):
        own.run("gcc", "@all.rsp", cwd=project)
        own.events()  # once it is stored

        assert ((project / "main.o").read_bytes(), (project / "main.d").read_bytes()) == (made, rules)
    assert own.outcomes() == ["local-run", "local-hit"]


def test_a_response_file_that_changes_is_read_again(own: Compiles, project: Path) -> None:
    change(project / "words", "-DANSWER_IS=1")
    own.run("gcc", "@words", *COMPILE, cwd=project)
    own.events()

    change(project / "words", "-DANSWER_IS=2")
    own.run("gcc", "@words", *COMPILE, cwd=project)

    assert own.outcomes() == ["local-run", "local-run"]


def test_time_macros_are_never_stale(own: Compiles, project: Path) -> None:
    change(project / "clock.c", "const char *t = __TIME__;\n")
    change(project / "day.c", "const char *d = __DATE__;\n")

    for name in ("clock.c", "clock.c", "day.c", "day.c"):
        own.run("gcc", "-c", name, cwd=project)
        own.events()

    assert own.outcomes() == ["local-run", "local-run", "local-run", "local-hit"]


def test_the_object_gets_the_mode_of_the_callers_umask_and_is_a_new_file(own: Compiles, project: Path) -> None:
    own.run("gcc", *COMPILE, cwd=project)
    own.events()
    (project / "other-name.o").hardlink_to(project / "main.o")

    own.run("gcc", *COMPILE, cwd=project, umask=0o027)

    assert (project / "main.o").stat().st_mode & 0o777 == 0o640
    assert (project / "main.o").stat().st_ino != (project / "other-name.o").stat().st_ino
    assert own.outcomes()[-1] == "local-hit"


def test_a_target_that_cannot_be_written_gets_the_compilers_words(own: Compiles, project: Path) -> None:
    own.run("gcc", *COMPILE, cwd=project)
    own.events()
    words = ("-Iinclude", "-O2", "-g", "-c", "main.c", "-o", "missing/main.o")
    expected = plain("gcc", *words, cwd=project)

    done = own.run("gcc", *words, cwd=project)

    assert done.returncode == expected.returncode
    assert b"missing/main.o" in done.stderr


def test_a_damaged_or_foreign_entry_is_compiled_anew(own: Compiles, project: Path) -> None:
    own.run("gcc", *COMPILE, cwd=project)
    own.events()
    expected = (project / "main.o").read_bytes()
    (entry,) = own.entries("results")
    whole = entry.read_bytes()

    for damaged in (
        whole[: len(whole) // 2],
        b"",
        b"CRLCC\x02" + whole[6:],
        whole[:-1] + bytes((whole[-1] ^ 1,)),
        b"{}",
    ):
        entry.write_bytes(damaged)
        own.run("gcc", *COMPILE, cwd=project)
        assert own.outcomes()[-1] == "local-run", damaged[:10]
        assert (project / "main.o").read_bytes() == expected
    own.run("gcc", *COMPILE, cwd=project)

    assert own.outcomes()[-1] == "local-hit"


def test_colours_on_a_terminal_only(own: Compiles, project: Path) -> None:
    change(project / "warns.c", "int f(void) { int unused; return 1; }\n")
    script = shutil.which("script")
    if script is None:
        pytest.skip("script (bsdutils) is not installed: no terminal to be had")
    command = f"{WRAPPER} gcc -Wall -c warns.c"

    def on_a_terminal() -> bytes:
        return subprocess.run(
            [script, "-qec", command, "/dev/null"],
            cwd=project,
            env={**own.environment, "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout

    assert b"\x1b[" in on_a_terminal()
    own.events()
    assert b"\x1b[" in on_a_terminal()
    assert own.outcomes() == ["local-run", "local-hit"]
    piped = own.run("gcc", "-Wall", "-c", "warns.c", cwd=project)
    assert b"\x1b[" not in piped.stderr
    assert b"unused" in piped.stderr


def test_links_named_as_compilers_reach_the_wrapper_and_never_themselves(own: Compiles, project: Path) -> None:
    links = project / "links"
    links.mkdir()
    for name in ("gcc", "cc"):
        (links / name).symlink_to(WRAPPER)
    path = {"PATH": f"{links}:{own.environment['PATH']}"}

    for program in ("gcc", str(links / "cc")):
        done = subprocess.run(
            [program, *COMPILE], cwd=project, env={**own.environment, **path}, capture_output=True, check=True
        )
        assert done.stderr == b""
    missing = subprocess.run(
        [links / "gcc", *COMPILE],
        cwd=project,
        env={**own.environment, "PATH": str(links)},
        capture_output=True,
        check=False,
    )

    assert len(own.events()) == 2
    assert missing.returncode == 127
    assert b"no such compiler" in missing.stderr


def test_wrappers_that_call_each_other_end(own: Compiles, project: Path) -> None:
    first, second = project / "first", project / "second"
    for place, other in ((first, second), (second, first)):
        place.mkdir()
        (place / "gcc").write_text(f'#!/bin/sh\nPATH={other} exec {WRAPPER} gcc "$@"\n')
        (place / "gcc").chmod(0o755)

    done = own.run("gcc", *COMPILE, cwd=project, env={"PATH": str(first)})

    assert done.returncode == 127
    assert b"in a circle" in done.stderr


def test_a_wrapper_around_a_compiler_is_handed_everything(own: Compiles, project: Path) -> None:
    """A script named gcc may do anything; nobody can tell what its result depends on."""
    (project / "gcc").write_text('#!/bin/sh\nexec /usr/bin/gcc "$@"\n')
    (project / "gcc").chmod(0o755)

    done = own.run("./gcc", *COMPILE, cwd=project)

    assert done.returncode == 0
    assert own.events()[-1].why == "unknown-compiler"
    assert (project / "main.o").is_file()


def test_a_compiler_that_is_killed_kills_the_wrapper_the_same_way(own: Compiles, project: Path) -> None:
    os.mkfifo(project / "waits.h")
    change(project / "waits.c", '#include "waits.h"\n')
    own.run("gcc", "--version", cwd=project)  # the daemon is there: its start would be a child, too
    wrapper = own.start("gcc", "-c", "waits.c", cwd=project, stderr=subprocess.PIPE)
    wait_until(lambda: has_child(wrapper.pid))

    wrapper.send_signal(signal.SIGTERM)
    _, stderr = wrapper.communicate(timeout=30)

    assert wrapper.returncode == -signal.SIGTERM, stderr
    assert own.run("gcc", *COMPILE, cwd=project).returncode == 0
    write_to(project / "waits.h")  # gcc leaves its cc1 behind, with or without us: it ends now


@pytest.mark.parametrize(
    "trouble",
    ["no-python", "python-fails", "no-directory", "foreign-directory", "disabled", "long-directory"],
)
def test_without_a_daemon_the_compiler_compiles(own: Compiles, project: Path, trouble: str) -> None:
    if trouble == "no-python":
        settings = {"CORRAL_CC_PYTHON": "/nonexistent/python3"}
    elif trouble == "python-fails":
        settings = {"CORRAL_CC_PYTHON": "/bin/false"}
    elif trouble == "no-directory":
        settings = {"CORRAL_CC_DIR": "/proc/nowhere/run"}
    elif trouble == "foreign-directory":
        (project / "open").mkdir()
        (project / "open").chmod(0o755)
        settings = {"CORRAL_CC_DIR": str(project / "open")}
    elif trouble == "disabled":
        settings = {"CORRAL_CC_DISABLE": "1"}
    else:
        settings = {"CORRAL_CC_DIR": str(project / ("long" * 60))}

    done = own.run("gcc", *COMPILE, cwd=project, env=settings)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (project / "main.o").is_file()
    assert own.store.exists() == (trouble == "long-directory")
    if trouble == "long-directory":  # longer than the name of a socket can be, and no trouble at all
        own.environment |= settings
        assert own.outcomes() == ["local-run"]


@pytest.mark.parametrize("trouble", ["another-token", "no-token", "no-socket", "a-file-for-a-socket"])
def test_a_daemon_that_nobody_reaches_any_more_is_replaced_and_no_build_waits_for_it(
    own: Compiles, project: Path, trouble: str
) -> None:
    own.run("gcc", *COMPILE, cwd=project)
    pid = own.daemon
    name = "token" if "token" in trouble else "socket"
    if trouble == "another-token":
        (own.private / name).write_bytes(bytes(32))
    else:
        (own.private / name).unlink()
    if trouble == "a-file-for-a-socket":
        (own.private / name).touch()
    (project / "main.o").unlink()

    done = own.run("gcc", *COMPILE, cwd=project)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (project / "main.o").is_file()
    wait_until(lambda: has_ended(pid))
    own.run("gcc", *COMPILE, cwd=project)
    assert own.outcomes()[-1] == "local-hit"
    assert "Traceback" not in (own.private / "daemon.log").read_text()


def test_a_daemon_that_hangs_costs_one_wrapper_its_patience_and_no_other(
    own: Compiles, project: Path, tmp_path: Path
) -> None:
    sources = sorted((Path(__file__).parents[2] / "native" / "cc").glob("*.c"))
    flags = ("-std=gnu11", "-D_GNU_SOURCE", "-DSILENCE_MS=500")
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(tmp_path / "corral-cc")], check=True)
    own.run("gcc", *COMPILE, cwd=project)
    pid = own.daemon
    mark = own.private / "silent"

    os.kill(pid, signal.SIGSTOP)
    try:
        first = own.run("gcc", *COMPILE, cwd=project, executable=tmp_path / "corral-cc")
        marked_ns = mark.stat().st_mtime_ns
        later = own.run("gcc", *COMPILE, cwd=project)
        marked_again = mark.stat().st_mtime_ns != marked_ns  # as one does that has waited
    finally:
        os.kill(pid, signal.SIGCONT)
    os.utime(mark, (0, 0))  # half a minute later
    own.run("gcc", *COMPILE, cwd=project)

    for done in (first, later):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not marked_again
    assert [event.outcome.value for event in own.events()][-1] == "local-hit"


def test_64_wrappers_at_once_start_one_daemon_and_all_compile(own: Compiles, project: Path) -> None:
    for number in range(64):
        (project / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number % 8}; }}\n")
    aged(*project.glob("part*.c"))
    wrappers = [own.start("gcc", "-c", f"part{number}.c", "-o", f"part{number}.o", cwd=project) for number in range(64)]

    assert [wrapper.wait(timeout=100) for wrapper in wrappers] == [0] * 64

    assert own.outcomes() == ["local-run"] * 64
    wrappers = [own.start("gcc", "-c", f"part{number}.c", "-o", f"part{number}.o", cwd=project) for number in range(64)]
    assert [wrapper.wait(timeout=100) for wrapper in wrappers] == [0] * 64
    assert own.outcomes()[64:] == ["local-hit"] * 64


def test_a_wrapper_that_is_killed_while_it_starts_the_daemon_leaves_one_that_serves_the_next(
    own: Compiles, project: Path
) -> None:
    """Ctrl-C in the first second of a build, and make again."""
    python = project / "python"
    python.write_text(
        f"#!/bin/sh\ntouch {project}/starting.$$\nwhile ! [ -e {project}/go ]; do sleep 0.01; done\n"
        f'exec {own.environment["CORRAL_CC_PYTHON"]} "$@"\n'
    )
    python.chmod(0o755)
    own.environment["CORRAL_CC_PYTHON"] = str(python)
    first = own.start("gcc", *COMPILE, cwd=project)
    wait_until(lambda: len(list(project.glob("starting.*"))) == 1)
    first.kill()
    first.wait()
    second = own.start("gcc", *COMPILE, cwd=project)
    wait_until(lambda: len(list(project.glob("starting.*"))) == 2)

    (project / "go").touch()

    assert second.wait(timeout=60) == 0
    assert own.outcomes() == ["local-run"]


def test_equal_compiles_at_the_same_time_run_once(own: Compiles, project: Path) -> None:
    change(project / "slow.c", "".join(f"int f{n}(int a) {{ return a * {n} + a % {n + 1}; }}\n" for n in range(500)))
    own.run("gcc", "--version", cwd=project)  # the daemon is there

    wrappers = [own.start("gcc", "-O2", "-c", "slow.c", "-o", f"slow{n}.o", cwd=project) for n in range(4)]

    assert [wrapper.wait(timeout=100) for wrapper in wrappers] == [0] * 4
    assert sorted(own.outcomes()[1:]) == ["local-hit"] * 3 + ["local-run"]
    assert len({(project / f"slow{n}.o").read_bytes() for n in range(4)}) == 1


def test_a_leader_that_dies_leaves_the_compile_to_its_follower(own: Compiles, project: Path) -> None:
    own.run("gcc", "--version", cwd=project)
    os.mkfifo(project / "waits.h")
    change(project / "waits.c", '#include "waits.h"\nint x;\n')
    words = ("gcc", "-c", "waits.c", "-o", "waits.o")
    leader = own.start(*words, cwd=project)
    wait_until(lambda: has_child(leader.pid))
    follower = own.start(*words, cwd=project)
    try:
        leader.kill()
        leader.wait()
        # Whoever reads the pipe, the leader's orphan or the follower's compiler, gets something to read.
        wait_until(lambda: (write_to(project / "waits.h"), follower.poll())[1] is not None)

        assert follower.returncode == 0
        assert own.outcomes()[1:] == ["local-run"]
        assert own.events()[-1].why == "not-stored"  # a pipe has no content to hash
    finally:
        follower.kill()
        follower.wait()


def has_objects(project: Path, count: int) -> bool:
    return len(list(project.glob("part*.o"))) >= count


def has_child(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())


def write_to(fifo: Path) -> bool:
    """False when nobody reads."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.write(descriptor, b"int y;\n")
    os.close(descriptor)
    return True


def test_a_daemon_that_is_killed_in_the_middle_of_a_build_breaks_nothing(own: Compiles, project: Path) -> None:
    for number in range(12):
        (project / f"part{number}.c").write_text(f"#include <stdio.h>\nint part{number}(void) {{ return {number}; }}\n")
    aged(*project.glob("part*.c"))
    (project / "Makefile").write_text(
        "all: $(patsubst %.c,%.o,$(wildcard part*.c))\n%.o: %.c\n\t$(CC) -O1 -c $< -o $@\n"
    )
    own.run("gcc", "--version", cwd=project)
    victims = []
    build = subprocess.Popen(
        ["make", "-s", "-j4", f"CC={WRAPPER} gcc"], cwd=project, env=own.environment, stderr=subprocess.PIPE
    )
    for count in (2, 6):
        wait_until(partial(has_objects, project, count))
        answer = own.daemon
        if answer:
            os.kill(answer, signal.SIGKILL)
            victims.append(answer)
    _, stderr = build.communicate(timeout=100)

    assert (build.returncode, stderr) == (0, b"")
    assert victims
    assert len(list(project.glob("part*.o"))) == 12
    assert own.run("gcc", "-O1", "-c", "part0.c", "-o", "part0.o", cwd=project).returncode == 0
    assert own.daemon not in victims


def test_the_daemon_takes_nothing_of_the_first_callers_build(own: Compiles, project: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        own.run(
            *("gcc", *COMPILE),
            cwd=project,
            env={"CPATH": "/nonexistent", "LD_LIBRARY_PATH": "/nonexistent", "PYTHONPATH": "/nonexistent"},
            pass_fds=(read_end, write_end),
        )
        proc = Path(f"/proc/{own.daemon}")
        held = {os.readlink(link) for link in (proc / "fd").iterdir()}
        variables = (proc / "environ").read_bytes()

        assert f"pipe:[{os.fstat(read_end).st_ino}]" not in held
        assert b"/nonexistent" not in variables
        assert os.readlink(proc / "cwd") == "/"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_an_idle_daemon_ends_and_the_next_compile_starts_another(project: Path) -> None:
    with compiles({"CORRAL_COMPILE__IDLE_S": "1"}) as own:
        own.run("gcc", *COMPILE, cwd=project)
        own.events()
        first = own.daemon
        wait_until(lambda: has_ended(first))
        assert not list(own.private.glob("socket"))

        own.run("gcc", *COMPILE, cwd=project)

        assert own.outcomes() == ["local-run", "local-hit"]


def test_a_changed_configuration_is_taken_by_the_running_daemon(own: Compiles, project: Path) -> None:
    file = own.home / "corral.toml"
    file.write_text("[compile]\nobject_bytes = 10\n")
    own.environment["CORRAL_CONFIG"] = str(file)
    own.run("gcc", *COMPILE, cwd=project)
    assert [event.why for event in own.events()] == ["not-stored"]
    before = own.daemon

    file.write_text("[compile]\nobject_bytes = '1MB'\n")

    def stored() -> bool:
        own.run("gcc", *COMPILE, cwd=project)
        return own.events()[-1].outcome.value == "local-hit"

    wait_until(stored)
    assert own.daemon == before


def test_results_without_compression_are_cloned_or_linked_out(project: Path) -> None:
    settings = {"CORRAL_COMPILE__COMPRESSION_LEVEL": "0", "CORRAL_COMPILE__HARD_LINKS": "true"}
    with compiles(settings) as own:
        shutil.copytree(project, own.home / "project")
        project = own.home / "project"
        aged(*project.rglob("*.[ch]"))
        own.run("gcc", *COMPILE, cwd=project)
        own.events()
        own.run("gcc", *COMPILE, cwd=project)
        (stored,) = own.entries("objects")
        assert (project / "main.o").stat().st_ino == stored.stat().st_ino

        with (project / "main.o").open("r+b") as file:  # as a tool that changes an object in place
            file.write(b"spoilt")
        own.run("gcc", *COMPILE, cwd=project)

        assert own.outcomes() == ["local-run", "local-hit", "local-run"]
        assert (project / "main.o").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed")
def test_a_full_disk_keeps_nothing_and_breaks_nothing_and_a_container_is_another_world(
    own: Compiles, project: Path
) -> None:
    own.store.mkdir()
    script = (
        f"mount -t tmpfs -o size=128k none {own.store} && "
        f"{WRAPPER} gcc --version >/dev/null && "  # the daemon is there, and so are its directories
        f"{{ cat /dev/zero >{own.store}/ballast; "
        f"for turn in 1 2; do rm -f main.o; {WRAPPER} {' '.join(('gcc', *COMPILE))} || exit 9; done; }}"
    )

    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=project,
        env=own.environment,
        capture_output=True,
        check=False,
    )
    full = tell(own.environment, "flush")
    assert done.returncode == 0, done.stderr
    assert (project / "main.o").read_bytes()[:4] == b"\x7fELF"
    assert full is not None
    assert full["unwritten"] == 2

    # That daemon lives in another mount namespace: what is called main.c there may be another file.
    (project / "main.o").unlink()
    outside = own.run("gcc", *COMPILE, cwd=project)
    answer = tell(own.environment, "flush")
    assert (outside.returncode, outside.stderr) == (0, b"")
    assert answer is not None
    assert answer["plans"] == full["plans"]
