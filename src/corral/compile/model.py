"""The nouns of a cached compile. Values only; nothing here decides or does.

The life of one compile, in these words: a *request* (argv, cwd, environment) is parsed into an :class:`Invocation`;
it is :class:`Cacheable` or there is a :class:`Bypass`. Its :class:`KeyInputs` make the *request key* (all but the
contents of files). Under a request key the store remembers *include sets*: which files a compile read, each with its
hash. A set whose files all still have these hashes gives the *result key*, and that names a :class:`Result`.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec


class Family(StrEnum):
    """The grammar of a command line."""

    GNU = "gnu"
    MSVC = "msvc"


class Vendor(StrEnum):
    """Whose compiler it is; found by asking the program, never by its name alone (``cc`` may be either)."""

    GCC = "gcc"
    CLANG = "clang"
    CL = "cl"
    CLANG_CL = "clang-cl"


class Mode(StrEnum):
    """What the command line asks for."""

    COMPILE = "compile"  # -c
    ASSEMBLE = "assemble"  # -S
    PREPROCESS = "preprocess"  # -E
    DEPENDENCIES = "dependencies"  # -M, -MM
    SYNTAX = "syntax"  # -fsyntax-only
    QUERY = "query"  # --version, -print-*, -v without inputs
    LINK = "link"


class Language(StrEnum):
    """The language of an input; the value is what ``-x`` of the GNU grammar takes."""

    C = "c"
    CXX = "c++"
    OBJC = "objective-c"
    OBJCXX = "objective-c++"
    C_PREPROCESSED = "cpp-output"
    CXX_PREPROCESSED = "c++-cpp-output"
    OBJC_PREPROCESSED = "objective-c-cpp-output"
    OBJCXX_PREPROCESSED = "objective-c++-cpp-output"
    ASSEMBLER = "assembler"
    ASSEMBLER_CPP = "assembler-with-cpp"
    HEADER_C = "c-header"
    HEADER_CXX = "c++-header"
    OTHER = "other"


class Category(StrEnum):
    """What a flag is about; decides how it enters the key."""

    MODE = "mode"
    OUTPUT = "output"
    INPUT = "input"
    LANGUAGE = "language"
    INCLUDE = "include"  # -I -isystem -iquote -idirafter -isysroot --sysroot -iprefix …
    FORCED_INCLUDE = "forced-include"  # -include -imacros
    DEFINE = "define"  # -D and -U, in one list: their order matters
    STANDARD = "standard"
    OPTIMIZE = "optimize"
    DEBUG = "debug"
    WARNING = "warning"
    FEATURE = "feature"  # -f…
    MACHINE = "machine"  # -m…
    DEPENDENCIES = "dependencies"  # -MD -MMD -MF -MT -MQ -MP -MG
    PATH_MAP = "path-map"  # -ffile-prefix-map= and its kin
    LINKER = "linker"
    PASS = "pass"  # -Wp, -Wa, -Xclang …
    OTHER = "other"  # known to have no effect worth a name; kept in the key
    UNKNOWN = "unknown"


class Argument(msgspec.Struct, frozen=True):
    """One flag or one input, as it stands on the command line.

    Attributes:
        words: the words of argv that it took, unchanged; joined again they are the command line.
        flag: the flag's canonical name (``-I``), "" for an input.
        value: what belongs to it, None when the flag has none.
        category: what it is about.
    """

    words: tuple[str, ...]
    flag: str
    value: str | None
    category: Category


class DependencyFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file of make rules that the command line asks for.

    Attributes:
        path: where it goes, as the compiler would name it (relative to the compile's directory, or absolute).
        system_headers: True for ``-MD``, False for ``-MMD``.
        targets: explicit targets, each with its flag (``-MT`` or ``-MQ``).
        phony: ``-MP``.
    """

    path: str
    system_headers: bool
    targets: tuple[tuple[str, str], ...] = ()
    phony: bool = False


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed command line.

    Attributes:
        compiler: the program as it was named (argv[0] of the real compiler).
        arguments: everything after it, response files expanded, in order.
        inputs: the input files with their languages, in order.
        output: the primary output, named or inferred; None when there is none to a file.
        output_named: True when ``-o`` (or ``/Fo``) named it.
        dependency_file: None when none is asked for.
        response_files: the ``@file`` arguments that were read, as they were named.
    """

    compiler: str
    family: Family
    arguments: tuple[Argument, ...]
    mode: Mode
    inputs: tuple[tuple[str, Language], ...]
    output: str | None
    output_named: bool
    dependency_file: DependencyFile | None = None
    response_files: tuple[str, ...] = ()

    def flags(self, *names: str) -> tuple[Argument, ...]:
        """The arguments with one of these canonical names, in order."""
        return tuple(each for each in self.arguments if each.flag in names)


class BypassReason(StrEnum):
    """Why a request goes straight to the compiler. Stable: statistics and explain show these words."""

    NOT_A_COMPILE = "not-a-compile"  # link, -E, -S, -M, -fsyntax-only, --version
    NO_INPUT = "no-input"
    SEVERAL_INPUTS = "several-inputs"
    STDIN = "stdin"
    DEVICE = "device"  # /dev/null and other devices as input or output
    OUTPUT_TO_STDOUT = "output-to-stdout"
    LANGUAGE = "language"  # assembly without the closure scan, CUDA, Ada, …
    SIDE_EFFECT = "side-effect"  # the flag writes files that we do not capture
    PRECOMPILED_HEADER = "precompiled-header"
    MODULES = "modules"
    PROFILE = "profile"  # reads or writes profiles
    PLUGIN = "plugin"
    FLAG = "flag"  # any other flag that we cannot answer for
    RESPONSE_FILE = "response-file"  # unreadable, or nested too deep
    TIME_MACRO = "time-macro"  # __DATE__, __TIME__, __TIMESTAMP__ in what was read
    CHANGED = "changed"  # a file that was read is gone, or was written while the compiler ran
    PLACES = "places"  # headers may come from more places than can be watched
    EMBEDDED_FILE = "embedded-file"  # .incbin and the like, which the compiler does not report
    UNKNOWN_COMPILER = "unknown-compiler"
    ENVIRONMENT = "environment"  # a variable such as DEPENDENCIES_OUTPUT changes what is written


class Bypass(msgspec.Struct, frozen=True):
    """This request is not for us; ``detail`` names the flag, the language or the variable."""

    reason: BypassReason
    detail: str = ""


class Cacheable(msgspec.Struct, frozen=True, kw_only=True):
    """This request can be answered from the cache.

    Attributes:
        source: the one input, as it was named.
        output: the object file, as it was named or inferred.
        side_files: other files that this compile writes and that are captured (``.su``, ``.gcno``…), as named.
        reads: files that the compiler reads and does not report; they belong into the include set.
        remote: True when a worker may run it from the closure alone.
    """

    source: str
    language: Language
    output: str
    side_files: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    remote: bool = True


Cacheability: TypeAlias = Cacheable | Bypass


class CompilerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which compiler it really is.

    Attributes:
        digest: hex BLAKE3 over the contents of all programs that take part (driver, compiler proper, assembler), or
            over the image's digest and the compiler's name there.
        path: absolute, symbolic links followed.
        vendor: None when it is no compiler that we know.
        version: first line of ``--version``, for people.
        target: the machine it compiles for by default (``-dumpmachine``).
        image: the digest of the image that it is of, "" for one of this machine.
    """

    digest: str
    path: str
    vendor: Vendor | None
    version: str = ""
    target: str = ""
    image: str = ""


class KeyInputs(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the contents of files that decides which bytes come out. Made by ``key``, kept for explain.

    Attributes:
        identity: the compiler's digest.
        flags: canonical flags, one text each; where order matters, they keep it.
        environment: the variables that matter, sorted, those that are set.
        directory: the compile's directory when the object may embed it, else "".
        subdirectory: the compile's directory, relative to the project's root ("." for itself).
        source: the source's name, relative to the project's root when it lies within.
        language: the language of the source.
    """

    identity: str
    flags: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: str
    source: str
    language: Language
    subdirectory: str = "."


class FileTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What the text of a file says that its hash alone does not: found once, when it is hashed.

    Attributes:
        date, time, timestamp: ``__DATE__``, ``__TIME__``, ``__TIMESTAMP__`` stand in it.
        embeds: ``.incbin``, ``.include`` or ``#embed`` stands in it.
        has_include: ``__has_include`` stands in it: absence of a file may have mattered.
        asks_for: the names in ``__has_include``; "" among them for one that is made by a macro.
        embedded: the names behind ``.incbin`` and ``.include``; "" among them for one that no eye can tell.
        names_itself: ``__FILE__`` or its like stands in it: the name of the file may be in the object.
    """

    date: bool = False
    time: bool = False
    timestamp: bool = False
    embeds: bool = False
    has_include: bool = False
    asks_for: tuple[str, ...] = ()
    embedded: tuple[str, ...] = ()
    names_itself: bool = False


PLAIN_FILE = FileTraits()


class IncludeSet(msgspec.Struct, frozen=True, kw_only=True):
    """What one compile read.

    Attributes:
        files: path and hex BLAKE3 of each file, the source first, then in the order of inclusion. Paths inside the
            project's root are relative to it, others absolute.
        absent: paths of the same kind where a file, had it been there, would have been read instead of one of
            ``files``; a set is valid only while none of them exists.
        bound_to: the root of the checkout whose name got into the object, "" for an object that holds anywhere; valid
            only for requests with this root.
        moment: what ``closure.moment`` said of time macros; valid only while it says the same, "" for always.
    """

    files: tuple[tuple[str, str], ...]
    absent: tuple[str, ...] = ()
    bound_to: str = ""
    moment: str = ""


class OutputFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a result.

    Attributes:
        role: ``object``, ``dependencies``, or ``side:<suffix>``; a request maps roles to its own paths.
        digest: hex BLAKE3 of the content.
        size_bytes: its size.
        mode: permission bits before the umask.
    """

    role: str
    digest: str
    size_bytes: int
    mode: int = 0o666


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a successful compile left. Failed compiles are never stored.

    Attributes:
        stdout, stderr: what the compiler printed.
        coloured: True when it printed for a terminal; never on a worker.
        duration_s: what running the compiler took; what a hit saves.
        origin: ``local``, or the id of the worker that ran it.
        execution: names the audit row of a worker's run, "" for one here.
    """

    files: tuple[OutputFile, ...]
    stdout: bytes = b""
    stderr: bytes = b""
    coloured: bool = False
    duration_s: float = 0.0
    origin: str = "local"
    execution: str = ""


class Outcome(StrEnum):
    """How one request ended, for statistics and explain."""

    LOCAL_HIT = "local-hit"
    SHARED_HIT = "shared-hit"  # from the object store behind the disk
    REMOTE_HIT = "remote-hit"  # a worker had it
    REMOTE_RUN = "remote-run"  # a worker compiled it
    LOCAL_RUN = "local-run"
    BYPASS = "bypass"
    FAILED = "failed"  # the compiler said no
