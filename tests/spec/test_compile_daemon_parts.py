"""Small parts of the compile daemon: file table, frames, explain, statistics, captures, settings."""

import asyncio
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.compile import frames
from corral.compile.beside import Beside
from corral.compile.capture import Source, again, capture, read_graph
from corral.compile.closure import traits
from corral.compile.compilers import Compilers
from corral.compile.explain import Record, diffs, reason
from corral.compile.files import FileTable, Signature
from corral.compile.frames import MalformedFrame, read_ask, read_head, read_report
from corral.compile.grammars import parse
from corral.compile.identity import Identities, Question
from corral.compile.journal import Event, Journal, read_journal, sums
from corral.compile.model import (
    Cacheable,
    CompilerIdentity,
    Invocation,
    KeyInputs,
    Language,
    Outcome,
    Vendor,
)
from corral.compile.records import Records
from corral.compile.remote.model import WorkerRoute
from corral.compile.remote.slots import Slots
from corral.compile.rendezvous import bind, directory, new_token, open_private
from corral.compile.settings import load_compile_config, store_directory
from corral.entry import is_compile
from corral.kernel.clock import SystemClock
from corral.kernel.errors import Conflict, InvalidSpec, NoFeasibleWorker

# File table


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_untouched_file_is_read_once_and_a_young_one_every_time(tmp_path: Path) -> None:
    file, clock, reads = tmp_path / "a.h", Clock(), 0

    def counted(content: bytes):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        return traits(content)

    file.write_text("#define A\n")
    table = FileTable(counted, clock)
    clock.now_s = file.stat().st_ctime + 0.01
    for _ in range(3):
        table.entry(str(file))
    assert reads == 3  # it could change again within the same tick

    clock.now_s += 10
    for _ in range(3):
        table.entry(str(file))
    assert reads == 4


def test_a_clock_that_was_set_back_makes_files_young(tmp_path: Path) -> None:
    file, clock = tmp_path / "a.h", Clock()
    file.write_text("1")
    clock.now_s = file.stat().st_mtime - 1_000_000
    table = FileTable(traits, clock)
    first = table.entry(str(file))

    file.write_text("2")
    second = table.entry(str(file))

    assert first is not None
    assert second is not None
    assert first.hash != second.hash
    assert first.signature is None


def test_a_pipe_a_directory_and_a_missing_file_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    table = FileTable(traits, Clock())

    assert [table.entry(str(tmp_path / name)) for name in ("pipe", "", "none")] == [None, None, None]


def test_the_table_is_bounded(tmp_path: Path) -> None:
    table = FileTable(traits, Clock(), entries_max=5)
    for number in range(20):
        (tmp_path / str(number)).touch()
        table.entry(str(tmp_path / str(number)))

    assert len(table) == 5


# Frames


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=300))
def test_no_frame_does_worse_than_being_malformed(data: bytes) -> None:
    for frame in (data, b"\x01\x01\x00\x00" + b"t" * 32 + data):
        try:
            head = read_head(frame)
            read_ask(head, frame)
            frames.words(data)
        except MalformedFrame:
            pass
        try:
            read_report(read_head(frame), frame)
        except MalformedFrame:
            pass


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_frame_has_a_sane_length(header: bytes) -> None:
    with pytest.raises(MalformedFrame):
        frames.frame_length(header)


def test_words_that_are_no_text_survive() -> None:
    assert frames.words(b"a\xff\0\0b\0") == ["a\udcff", "", "b"]


# Explain


def record(**changes: object) -> Record:
    inputs = KeyInputs(
        identity="c1",
        flags=("-O 2", "-D A"),
        environment=(("CPATH", "/x"),),
        directory="",
        subdirectory=".",
        source="a.c",
        language=Language.C,
    )
    whole = Record(
        source="/p/a.c",
        output="/p/a.o",
        cwd="/p",
        root="/p",
        argv=("gcc",),
        at_s=1.0,
        outcome=Outcome.LOCAL_RUN,
        inputs=inputs,
        files={"a.c": "s1", "h.h": "h1"},
    )
    ours = {name: value for name, value in changes.items() if name in Record.__struct_fields__}
    theirs = {name: value for name, value in changes.items() if name not in ours}
    changed: Record = msgspec.structs.replace(whole, inputs=msgspec.structs.replace(inputs, **theirs), **ours)
    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ()),
        ({"identity": "c2"}, ("compiler changed:  c1 ->  c2",)),
        ({"flags": ("-O 3", "-D A")}, ("flag removed: -O 2", "flag added: -O 3")),
        ({"flags": ("-D A", "-O 2")}, ("flag order changed: -O 2 -D A -> -D A -O 2",)),
        ({"environment": ()}, ("environment CPATH removed: /x",)),
        ({"root": "/q"}, ("project changed: a.c in /p -> a.c in /q",)),
        ({"files": {"a.c": "s2", "h.h": "h1"}}, ("source a.c changed: s1 -> s2",)),
        ({"files": {"a.c": "s1", "h.h": "h2"}}, ("header h.h changed: h1 -> h2",)),
        ({"files": {"a.c": "s1", "i.h": "i1"}}, ("header h.h removed", "header i.h added")),
        ({"image": "sha256:1", "identity": "c2"}, ("image added: sha256:1",)),
        (
            {"image": "sha256:1", "files": {"a.c": "s1", "h.h": "h2"}},
            ("image added: sha256:1", "header h.h changed: h1 -> h2"),
        ),
    ],
)
def test_explain_names_what_changed(changes: dict[str, object], words: tuple[str, ...]) -> None:
    assert tuple(str(each) for each in diffs(record(), record(**changes))) == words


def test_the_headers_of_a_system_are_nothing_that_an_image_has_lost() -> None:
    here = record(files={"a.c": "s1", "h.h": "h1", "/usr/include/stdio.h": "i1"})

    assert [str(each) for each in diffs(here, record(image="sha256:1"))] == ["image added: sha256:1"]


def test_the_first_time_has_its_own_reason_and_so_has_what_was_evicted() -> None:
    assert reason(record(), None) == "first-time"
    assert reason(record(), record()) == "evicted"


def test_records_are_bounded_the_oldest_out_first_whatever_else_happens_in_their_directory(tmp_path: Path) -> None:
    records = Records(tmp_path, records_max=3)
    (tmp_path / "explain" / "gone.new1").symlink_to("nowhere")  # as a file that another thread has renamed by now
    for number in range(4):
        records.write(record(source=f"/p/{number}.c"))
        for file in (tmp_path / "explain").glob("*.json"):
            os.utime(file, (number, number)) if records.read(f"/p/{number}.c") and file.stat().st_mtime > 1e6 else None

    for number in range(300):  # it looks once in a while
        records.write(record(source="/p/3.c", at_s=float(number)))

    assert len(list((tmp_path / "explain").glob("*.json"))) <= 3
    assert records.read("/p/0.c") is None
    assert records.read("/p/3.c") is not None


# Who the compiler is


async def test_a_compiler_that_many_wrappers_meet_at_once_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def probe(question: Question) -> tuple[CompilerIdentity, list[tuple[str, Signature]]]:
        asked.append(question)
        return GCC, []

    monkeypatch.setattr(Identities, "probe", staticmethod(probe))
    beside = Beside(2)
    compilers = Compilers(beside)
    async with beside.running(), asyncio.TaskGroup() as group:
        meeting = [group.create_task(compilers.meet(("/usr/bin/gcc", ("/bin",), ()))) for _ in range(200)]

    assert {each.result() for each in meeting} == {GCC}
    assert len(asked) == 1


async def test_a_compiler_that_cannot_be_asked_is_asked_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(question: Question) -> tuple[CompilerIdentity, list[tuple[str, Signature]]]:
        raise OSError("no more processes")

    monkeypatch.setattr(Identities, "probe", staticmethod(probe))
    beside = Beside(2)
    compilers = Compilers(beside)
    async with beside.running():
        for _ in range(2):
            with pytest.raises(OSError, match="processes"):
                await compilers.meet(("/usr/bin/gcc", ("/bin",), ()))


# Slots on the fleet


async def test_slots_that_are_closed_leave_nobody_waiting() -> None:
    class Silent:
        """A scheduler that never answers."""

        asked = asyncio.Event()

        async def route(self, *, image: str, slots: int, avoid: Collection[str]) -> Sequence[WorkerRoute]:
            self.asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def release(self, route_ids: Collection[str]) -> None:
            pass

        async def close(self) -> None:
            pass

    asking: list[asyncio.Task[None]] = []
    scheduler = Silent()
    async with asyncio.TaskGroup() as group:
        slots = Slots(
            scheduler,
            SystemClock(),
            lambda work: asking.append(group.create_task(work)),
            image="",
            slots_max=4,
            idle_s=1,
        )
        waiting = [group.create_task(_refused(slots)) for _ in range(3)]
        await scheduler.asked.wait()
        await slots.close()
        asking[0].cancel()

    assert [each.result() for each in waiting] == ["the daemon ends"] * 3
    assert await _refused(slots) == "the daemon ends"


async def _refused(slots: Slots) -> str:
    with pytest.raises(NoFeasibleWorker) as caught:
        await slots.acquire()
    return caught.value.message


# Statistics


def test_the_journal_is_read_back_bounded_and_damage_is_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, bytes_max=2000)
    for number in range(100):
        journal.add(Event(t=float(number), outcome=Outcome.LOCAL_HIT, source="/p/a.c", saved_s=0.5))
        journal.write()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"t": half a line')

    found = list(read_journal(tmp_path, since_s=95))

    assert [event.t for event in found] == [95.0, 96.0, 97.0, 98.0, 99.0]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000


def test_sums_tell_hits_misses_by_reason_and_time_saved() -> None:
    events = [
        Event(t=1.0, outcome=Outcome.LOCAL_HIT, saved_s=2.0),
        Event(t=1.0, outcome=Outcome.REMOTE_HIT, saved_s=1.0),
        Event(t=1.0, outcome=Outcome.LOCAL_RUN, why="header", took_s=0.5),
        Event(t=1.0, outcome=Outcome.BYPASS, why="stdin"),
        Event(t=1.0, outcome=Outcome.FAILED),
    ]

    found = sums(iter(events))

    assert (found.requests, found.hits, found.runs, found.failed) == (5, 2, 1, 1)
    assert (found.misses, found.bypasses) == ({"header": 1}, {"stdin": 1})
    assert (found.saved_s, found.spent_s) == (3.0, 0.5)
    assert round(found.hit_rate, 2) == 0.67


# Captures

GCC = CompilerIdentity(digest="1", path="/usr/bin/gcc", vendor=Vendor.GCC)
CLANG = CompilerIdentity(digest="2", path="/usr/bin/clang", vendor=Vendor.CLANG)
CLANG_CL = CompilerIdentity(digest="2", path="/usr/bin/clang-cl", vendor=Vendor.CLANG)


def captured(identity: CompilerIdentity, *words: str, terminal: bool = False) -> tuple[Source, list[str]]:
    invocation = parse([identity.path, *words])
    assert isinstance(invocation, Invocation)
    cacheable = Cacheable(source="a.c", language=invocation.inputs[0][1], output="a.o")
    found = capture(words, invocation, cacheable, identity, terminal=terminal)
    return found.source, found.arguments[: len(found.arguments) - len(words)]


@pytest.mark.parametrize(
    ("identity", "words", "source", "added"),
    [
        (GCC, ("-c", "a.c"), Source.MEMORY, ["-MD", "-MF", ""]),
        (GCC, ("-MD", "-c", "a.c"), Source.FILE, []),
        (GCC, ("-MMD", "-c", "a.c"), Source.TREE, ["-H"]),
        (GCC, ("-g", "-MMD", "-c", "a.c"), Source.AGAIN, []),
        (GCC, ("-c", "a.i"), Source.NONE, []),
        (CLANG, ("-MMD", "-c", "a.c"), Source.GRAPH, ["-Xclang", "-dependency-dot", "-Xclang", ""]),
        (CLANG, ("-grecord-gcc-switches", "-c", "a.c"), Source.AGAIN, []),
        (CLANG_CL, ("/c", "a.c"), Source.MEMORY, ["-clang:-MD", "-clang:-MF", "-clang:"]),
        (CLANG_CL, ("/Z7", "/c", "a.c"), Source.AGAIN, []),
    ],
)
def test_nothing_is_added_that_changes_the_object(
    identity: CompilerIdentity, words: tuple[str, ...], source: Source, added: list[str]
) -> None:
    assert captured(identity, *words) == (source, added)


def test_colours_are_forced_only_on_a_terminal_and_only_when_nobody_said_otherwise() -> None:
    assert captured(GCC, "-c", "a.i", terminal=True)[1] == ["-fdiagnostics-color=always"]
    assert captured(GCC, "-c", "a.i", "-fdiagnostics-color=never", terminal=True)[1] == []
    assert captured(CLANG, "-c", "a.i", "-fno-color-diagnostics", terminal=True)[1] == []


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("gcc -g -MMD -MF a.d -MTx -MP -Iinc -c a.c -oa.o -o b.o --output=c.o", "-M -MF - -g -Iinc a.c"),
        ("gcc -Wp,-DX,-MMD,a.d,-MT,-MD,-DY -c a.c", "-M -MF - -Wp,-DX,-DY a.c"),
        ("gcc -Wp,-MD,a.d @more.rsp", "-M -MF - -g a.c"),
        ("clang-cl /c /Z7 /Foa.obj /showIncludes a.c", "-clang:-M -clang:-MF -clang:- /Z7 a.c"),
    ],
)
def test_asking_again_writes_nothing_but_rules(line: str, asked: str) -> None:
    invocation = parse(line.split(), read_file={"more.rsp": b"-g -c a.c -o a.o"}.get)
    assert isinstance(invocation, Invocation)

    assert again(invocation, rules="-") == asked.split()


def test_a_graph_of_includes_gives_both_readings_of_a_name() -> None:
    text = 'digraph "x" {\n  header_1 [ shape="box", label="usr/include/stdio.h"];\n  header_1 -> header_2;\n}\n'

    assert read_graph(text) == ("usr/include/stdio.h", "/usr/include/stdio.h")


# Settings and rendezvous


def test_the_daemon_reads_its_section_alone_and_the_environment_over_it(tmp_path: Path) -> None:
    file = tmp_path / "corral.toml"
    file.write_text('[compile]\nstore_bytes = "1GB"\nidle_s = "10m"\n[worker]\nslots = 3\n')

    found = load_compile_config({"CORRAL_CONFIG": str(file), "CORRAL_COMPILE__IDLE_S": "5", "CORRAL_CC_DIR": "/x"})

    assert (found.store_bytes, found.idle_s) == (10**9, 5.0)
    assert store_directory(found, {"HOME": "/home/ann"}) == Path("/home/ann/.cache/corral-cc")


def test_every_mistake_of_the_section_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "corral.toml"
    file.write_text('[compile]\nstore_byte = 1\nidle_s = "soon"\njobs = "many"\n')

    with pytest.raises(InvalidSpec) as caught:
        load_compile_config({"CORRAL_CONFIG": str(file)})

    assert len(caught.value.mistakes) == 3


def test_a_paranoid_client_has_no_store_that_others_could_have_written() -> None:
    settings = {"CORRAL_COMPILE__SHARED__URL": "s3://compiles", "CORRAL_COMPILE__REMOTE__PARANOID": "true"}
    with pytest.raises(InvalidSpec, match="only workers read and write shared stores"):
        load_compile_config(settings)


@pytest.mark.parametrize("image", ["gcc:13", "gcc@sha256:12", "root:/opt/tools", "@sha256:" + "a" * 64])
def test_an_image_that_may_be_another_one_tomorrow_is_no_tool_chain(image: str) -> None:
    with pytest.raises(InvalidSpec, match="has no digest"):
        load_compile_config({"CORRAL_COMPILE__REMOTE__IMAGE": image})

    digest = "sha256:" + "a" * 64
    named = load_compile_config({"CORRAL_COMPILE__REMOTE__IMAGE": f"registry:5000/gcc:13@{digest}"})
    assert named.remote.image_digest == digest


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(InvalidSpec, match="not yours alone"):
        open_private(tmp_path / "run")

    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidSpec):
        open_private(tmp_path / "link")


def test_a_runtime_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}

    assert directory(environment, os.geteuid()) == tmp_path / "corral-cc"
    assert directory(environment, os.geteuid() + 1) == Path(f"/tmp/corral-cc-{os.geteuid() + 1}")


def test_one_daemon_per_directory_and_a_new_token_for_each(tmp_path: Path) -> None:
    private = open_private(tmp_path / "run")
    try:
        first = new_token(private)
        with bind(private):
            with pytest.raises(Conflict):
                bind(private)
        second = new_token(private)
        bind(private).close()  # a socket that nobody listens at is replaced

        assert first != second
        assert (tmp_path / "run" / "token").read_bytes() == second
        assert (tmp_path / "run" / "token").stat().st_mode & 0o777 == 0o600
    finally:
        os.close(private)


@pytest.mark.parametrize(
    ("words", "compile_"),
    [
        (("cc", "gcc", "-c", "a.c"), True),
        (("cc", "./clang"), True),
        (("cc", "stats"), False),
        (("cc", "install-links", "d"), False),
        (("cc", "--help"), False),
        (("cc",), False),
        (("run", "gcc"), False),
        ((), False),
    ],
)
def test_a_compile_never_reaches_the_command_line(words: tuple[str, ...], compile_: bool) -> None:
    assert is_compile([*words]) == compile_
