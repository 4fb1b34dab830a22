"""Whether the result of a compile may be kept, and if not, which flag is to blame. Pure.

The rule is narrow on purpose: one source, one object, and nothing written or read that is not captured. Everything
else goes to the compiler as it is.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from corral.compile.grammars.gnu_table import GNU_FLAGS
from corral.compile.grammars.msvc_table import MSVC_FLAGS
from corral.compile.model import (
    Argument,
    Bypass,
    BypassReason,
    Cacheability,
    Cacheable,
    Category,
    Family,
    Invocation,
    Language,
    Mode,
)

_REASONS: Final = {
    family: {row.name: row.bypass for row in table.rows.values() if row.bypass is not None}
    for family, table in ((Family.GNU, GNU_FLAGS), (Family.MSVC, MSVC_FLAGS))
}
_WITH_VALUE: Final = frozenset(
    (row.canonical or row.name)
    for table in (GNU_FLAGS, MSVC_FLAGS)
    for row in table.rows.values()
    if row.shape.value in ("separate", "either")
)
_LANGUAGES: Final = frozenset(Language) - {Language.OTHER, Language.HEADER_C, Language.HEADER_CXX}
_HEADERS: Final = frozenset({Language.HEADER_C, Language.HEADER_CXX})

_ENVIRONMENT: Final = (
    "DEPENDENCIES_OUTPUT",
    "SUNPRO_DEPENDENCIES",
    "GCC_COMPARE_DEBUG",
    "GCC_EXTRA_DIAGNOSTIC_OUTPUT",
    "CC_PRINT_OPTIONS",
    "CC_PRINT_HEADERS",
    "CC_LOG_DIAGNOSTICS",
    "CC_PRINT_PROC_STAT",
    "CL",
    "_CL_",
)
"""Variables that make a compiler write more than its flags say, or take more flags."""

_INNER_PLAIN: Final = ("-D", "-U", "-I", "-W", "-w", "-isystem", "-iquote", "-include")
_INNER_DEPENDENCIES: Final = frozenset({"-MD", "-MMD", "-MF", "-MT", "-MQ", "-MP"})
_ASSEMBLER_EFFECTS: Final = ("-a", "--MD", "-o", "@", "--statistics", "-v", "--listing", "--dump-config")
_CLANG_EFFECTS: Final = (
    "-emit-",
    "-load",
    "-add-plugin",
    "-plugin",
    "-include-pch",
    "-fmodule",
    "-dependency-",
    "-module-",
    "-serialize-",
    "-header-include",
    "-o",
    "-diagnostic-log",
    "-stats-file",
    "-coverage-",
    "-split-dwarf",
    "-ast-",
    "-dump-",
    "-verify",
    "-fprofile",
    "-E",
    "-S",
    "-rewrite",
)
_NATIVE: Final = frozenset({"arch=native", "tune=native", "cpu=native"})
_TIME_MACROS: Final = ("__DATE__", "__TIME__", "__TIMESTAMP__")


def judge(invocation: Invocation, environment: Mapping[str, str]) -> Cacheability:
    """Tell whether the result may be kept. ``environment``: at least what ``key.relevant_environment`` leaves."""
    for name in _ENVIRONMENT:
        if environment.get(name):
            return Bypass(BypassReason.ENVIRONMENT, name)
    if invocation.mode is not Mode.COMPILE:
        return Bypass(BypassReason.NOT_A_COMPILE, _mode_flag(invocation))
    whole = _judge_files(invocation)
    if isinstance(whole, Bypass):
        return whole
    remote = True
    reasons = _REASONS[invocation.family]
    for argument in invocation.arguments:
        reason = reasons.get(argument.flag)
        if reason is not None:
            return Bypass(reason, " ".join(argument.words))
        check = _CHECKS.get(argument.category)
        if check is not None and (found := check(argument, environment)) is not None:
            return found
        if argument.value is None and argument.flag in _WITH_VALUE:
            return Bypass(BypassReason.FLAG, argument.flag)
        remote = remote and argument.value not in _NATIVE
    if (found := _judge_lto(invocation)) is not None:
        return found
    return Cacheable(
        source=whole.source, language=whole.language, output=whole.output, reads=_reads(invocation), remote=remote
    )


def _mode_flag(invocation: Invocation) -> str:
    flags = [each.words[0] for each in invocation.arguments if each.category is Category.MODE and each.flag != "-c"]
    return flags[0] if flags else "no -c"


def _judge_files(invocation: Invocation) -> Cacheability:
    """Inputs and outputs by their names."""
    names = [name for name, _ in invocation.inputs]
    if not names:
        return Bypass(BypassReason.NO_INPUT)
    if any(name in ("-", "/dev/stdin") for name in names):
        return Bypass(BypassReason.STDIN)
    if len(names) > 1:
        return Bypass(BypassReason.SEVERAL_INPUTS, " ".join(names[:3]))
    source, language = invocation.inputs[0]
    output, rules = invocation.output, invocation.dependency_file
    if output == "-" or (rules is not None and rules.path == "-"):
        return Bypass(BypassReason.OUTPUT_TO_STDOUT)
    for path in (source, output or "", "" if rules is None else rules.path):
        if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
            return Bypass(BypassReason.DEVICE, path)
    if language in _HEADERS:
        return Bypass(BypassReason.PRECOMPILED_HEADER, source)
    if language not in _LANGUAGES or not output:
        return Bypass(BypassReason.LANGUAGE, source)
    return Cacheable(source=source, language=language, output=output)


def _check_pass(argument: Argument, environment: Mapping[str, str]) -> Bypass | None:
    """Flags inside of flags: only those whose effect we know."""
    value = argument.value or ""
    if argument.flag == "-Wp,":
        bad = _first_bad_inner(value.split(","))
    elif argument.flag == "-Xpreprocessor":
        bad = "" if value.startswith(_INNER_PLAIN) else value
    elif argument.flag in ("-Wa,", "-Xassembler"):
        bad = next((word for word in value.split(",") if word.startswith(_ASSEMBLER_EFFECTS)), "")
    else:
        bad = value if value.startswith(_CLANG_EFFECTS) else ""
    if bad:
        return Bypass(BypassReason.SIDE_EFFECT, " ".join(argument.words))
    return _check_macro(argument, environment)


def _first_bad_inner(words: Iterable[str]) -> str:
    value_of = ""
    for word in words:
        if value_of:
            value_of = ""
        elif word in _INNER_DEPENDENCIES:
            value_of = "" if word == "-MP" else word
        elif not word.startswith(_INNER_PLAIN):
            return word
    return ""


def _check_macro(argument: Argument, environment: Mapping[str, str]) -> Bypass | None:
    """A macro that stands for the time of the compile."""
    value = argument.value or ""
    if "__" in value and any(name in value for name in _TIME_MACROS):
        fixed = environment.get("SOURCE_DATE_EPOCH") and "__TIMESTAMP__" not in value
        return None if fixed else Bypass(BypassReason.TIME_MACRO, " ".join(argument.words))
    return None


def _check_dependencies(argument: Argument, environment: Mapping[str, str]) -> Bypass | None:
    return Bypass(BypassReason.FLAG, "-MG") if argument.flag == "-MG" else None


def _check_include(argument: Argument, environment: Mapping[str, str]) -> Bypass | None:
    """Specs may contain anything; only those of the compiler itself or named by their place can be told apart."""
    if argument.flag == "-specs=" and "/" not in (argument.value or ""):
        return Bypass(BypassReason.FLAG, " ".join(argument.words))
    return None


_CHECKS: Final = {
    Category.PASS: _check_pass,
    Category.DEFINE: _check_macro,
    Category.DEPENDENCIES: _check_dependencies,
    Category.INCLUDE: _check_include,
}


def _judge_lto(invocation: Invocation) -> Bypass | None:
    """gcc names the sections of such an object by chance, unless it is given a seed."""
    lto = ""
    for argument in invocation.arguments:
        if argument.category is Category.FEATURE and argument.value is not None:
            if argument.value == "lto" or argument.value.startswith("lto="):
                lto = argument.words[0]
            elif argument.value == "no-lto":
                lto = ""
            elif argument.value.startswith("random-seed="):
                return None
    if lto and "clang" not in invocation.compiler.rpartition("/")[2]:
        return Bypass(BypassReason.FLAG, f"{lto} without -frandom-seed")
    return None


_READ_BY: Final = (
    *("-specs=", "-fsanitize-blacklist=", "-fsanitize-ignorelist="),
    *("-fsanitize-coverage-allowlist=", "-fsanitize-coverage-ignorelist="),
)


def _reads(invocation: Invocation) -> tuple[str, ...]:
    return tuple(
        each.value
        for each in invocation.arguments
        if each.category is Category.INCLUDE and each.flag in _READ_BY and each.value
    )
