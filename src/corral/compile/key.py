"""Which compiles give the same bytes: the key of a request without the contents of files, and of its result. Pure.

Every flag goes in, in its order, as name and value; what is left out is left out on purpose: where the object and the
rules for make go, and what has no effect at all. Names of places inside the project's root are written relative to
it, so that two checkouts share their results; whatever of the checkout's own place could get into an object stands
in ``directory`` (static: debug information) or is found in the object itself (``closure.bound_to``).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import blake3

from corral.compile.host import processor
from corral.compile.model import (
    Argument,
    Cacheable,
    Category,
    CompilerIdentity,
    Family,
    IncludeSet,
    Invocation,
    KeyInputs,
    Vendor,
)
from corral.compile.paths import relative, spelled

VERSION: Final = b"corral compile 1"
"""Changes whenever equal inputs would get another meaning; entries of other versions are never found."""

RELEVANT: Final = frozenset(
    {
        # where headers are looked for
        *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "OBJC_INCLUDE_PATH", "OBJCPLUS_INCLUDE_PATH", "SDKROOT"),
        *("INCLUDE", "EXTERNAL_INCLUDE"),
        # which programs the driver runs
        *("GCC_EXEC_PREFIX", "COMPILER_PATH", "GCC_ROOT", "CCC_OVERRIDE_OPTIONS"),
        # the time that the compiler takes for now
        *("SOURCE_DATE_EPOCH", "ZERO_AR_DATE", "TZ"),
        # the language and the looks of messages, the meaning of bytes in sources
        *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "GCC_COLORS", "GCC_URLS", "TERM_URLS", "VSLANG"),
        *("MACOSX_DEPLOYMENT_TARGET", "IPHONEOS_DEPLOYMENT_TARGET", "TVOS_DEPLOYMENT_TARGET"),
        "POSIXLY_CORRECT",
        # the directory, as debug information names it
        "PWD",
        # what forbids to keep a result
        *("DEPENDENCIES_OUTPUT", "SUNPRO_DEPENDENCIES", "GCC_COMPARE_DEBUG", "GCC_EXTRA_DIAGNOSTIC_OUTPUT"),
        *("CC_PRINT_OPTIONS", "CC_PRINT_HEADERS", "CC_LOG_DIAGNOSTICS", "CC_PRINT_PROC_STAT", "CL", "_CL_"),
    }
)
"""Names of all variables that can change what a compiler writes or prints."""

_SEPARATOR: Final = "\x1f"
_UNKEYED: Final = frozenset({"-MF", "-pipe", "/Fo", "-o", "/nologo", "/MP"})
_NO_DEBUG: Final = ("no-", "record-", "z", "strict-", "column-", "variable-", "pubnames", "gnu-pubnames")
_MAPS: Final = frozenset({"-ffile-prefix-map=", "-fdebug-prefix-map="})
_DIRECTORIES: Final = frozenset({"-fdebug-compilation-dir=", "-ffile-compilation-dir="})
_PLACES: Final = frozenset({Category.INCLUDE, Category.FORCED_INCLUDE, Category.INPUT, Category.LINKER})


def relevant_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change the bytes, those that are set."""
    return {name: value for name, value in environment.items() if name in RELEVANT}


def key_inputs(
    invocation: Invocation,
    cacheable: Cacheable,
    *,
    identity: CompilerIdentity,
    environment: Mapping[str, str],
    cwd: str,
    root: str,
) -> KeyInputs:
    """Everything but the contents of files that decides which bytes come out.

    ``environment`` is what :func:`relevant_environment` leaves; ``root`` is "" where no project is marked, and then
    every name is absolute.
    """
    flags = [text for each in invocation.arguments if (text := _flag(each, root)) is not None]
    rules = invocation.dependency_file
    if rules is not None and not rules.targets:
        flags.append(f"target{_SEPARATOR}{spelled(cacheable.output, root=root)}")  # the rule begins with it
    if invocation.family is Family.MSVC and _has_debug(invocation):
        flags.append(f"object{_SEPARATOR}{relative(cacheable.output, cwd=cwd, root=root)}")  # CodeView names it
    if records_command_line(invocation, identity):
        flags.append(_SEPARATOR.join(word for each in invocation.arguments for word in each.words))
    if not cacheable.remote:
        flags.append(f"processor{_SEPARATOR}{processor()}")
    return KeyInputs(
        identity=identity.digest,
        flags=tuple(flags),
        environment=tuple(sorted((name, value) for name, value in environment.items() if name != "PWD")),
        directory=_directory(invocation, environment, cwd, root),
        subdirectory=relative(".", cwd=cwd, root=root),
        source=relative(cacheable.source, cwd=cwd, root=root),
        language=cacheable.language,
    )


def records_command_line(invocation: Invocation, identity: CompilerIdentity) -> bool:
    """True when the object holds all words of the command line; gcc puts down only what changes the code."""
    return identity.vendor is not Vendor.GCC and any(
        each.category is Category.DEBUG and each.value == "record-gcc-switches" for each in invocation.arguments
    )


def request_key(inputs: KeyInputs) -> str:
    """The name of a request without the contents of files: 64 hex digits."""
    hasher = blake3.blake3(VERSION)
    for part in (
        (inputs.identity, inputs.directory, inputs.subdirectory, inputs.source, inputs.language.value),
        inputs.flags,
        tuple(f"{name}={value}" for name, value in inputs.environment),
    ):
        hasher.update(_framed(part))
    return hasher.hexdigest()


def result_key(request: str, include_set: IncludeSet) -> str:
    """The name of a result: the request, and every file that was read, with its content. 64 hex digits."""
    hasher = blake3.blake3(VERSION)
    hasher.update(_framed((request, include_set.bound_to, include_set.moment)))
    hasher.update(_framed([text for file in include_set.files for text in file]))
    return hasher.hexdigest()


def _framed(texts: Iterable[str]) -> bytes:
    """Texts so that no two lists look alike: each behind its length, the list behind its count."""
    pieces = [text.encode("utf-8", "surrogateescape") for text in texts]
    head = ",".join([str(len(piece)) for piece in pieces]).encode()
    return b"%d;%b;" % (len(pieces), head) + b"".join(pieces)


def _flag(argument: Argument, root: str) -> str | None:
    """One flag as the key has it; None for what is left out."""
    if argument.flag in _UNKEYED:
        return None
    value = argument.value
    if value is None:
        return argument.flag
    if root and root in value:
        if argument.category is Category.PATH_MAP:
            old, equals, new = value.partition("=")
            value = spelled(old, root=root) + equals + new
        elif argument.category in _PLACES or argument.flag in ("-MT", "-MQ"):
            value = spelled(value, root=root)
    return f"{argument.flag}{_SEPARATOR}{value}"


def _directory(invocation: Invocation, environment: Mapping[str, str], cwd: str, root: str) -> str:
    """What debug information says of the directory of the compile; "" without debug information."""
    if not _has_debug(invocation):
        return ""
    maps: list[tuple[str, str]] = []
    for argument in invocation.arguments:
        if argument.flag in _DIRECTORIES:
            return argument.value or ""
        if argument.flag in _MAPS:
            old, _, new = (argument.value or "").partition("=")
            maps.append((old, new))
    named = environment.get("PWD", "") if invocation.family is Family.GNU else ""
    seen = [_mapped(cwd, maps)]
    if named.startswith("/") and named != cwd:
        seen.append(_mapped(named, maps))  # gcc prefers it when it leads to the same place
    return _SEPARATOR.join(seen)


def _has_debug(invocation: Invocation) -> bool:
    debug = False
    for argument in invocation.arguments:
        value = argument.value or ""
        if argument.category is Category.DEBUG:
            if value == "0":
                debug = False
            elif not value.startswith(_NO_DEBUG):
                debug = True
        elif argument.category is Category.PASS and any(word.startswith(("-g", "--g")) for word in value.split(",")):
            return True
    return debug


def _mapped(path: str, maps: list[tuple[str, str]]) -> str:
    """The path after the prefix maps; the last one that fits is taken, as the compilers do."""
    for old, new in reversed(maps):
        if path.startswith(old):
            return new + path[len(old) :]
    return path
