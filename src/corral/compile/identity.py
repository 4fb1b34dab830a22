"""Which compiler it really is: the hash of all programs that take part, asked of the compiler itself.

A driver such as gcc is a small program that runs others: cc1, as. Debian's gcc finds its assembler on PATH, so PATH
belongs to the question. Blocking work (:meth:`Identities.probe`) belongs into a thread.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import blake3
from msgspec import structs

from corral.compile.files import Signature, signature_of
from corral.compile.grammars.names import family_of
from corral.compile.model import CompilerIdentity, Vendor

_ASK_S: Final = 10.0
_PARTS: Final = ("cc1", "cc1plus", "as")
_CLANG_PARTS: Final = ("as",)  # with -fno-integrated-as
_CONFIGURED: Final = re.compile(r"^Configuration file: (/.+)$", re.MULTILINE)
_SEARCH: Final = ("PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX", "LD_LIBRARY_PATH")
_COMPILER_LIBRARIES: Final = re.compile(r"lib(?:LLVM|clang)[^/ ]*\s*=>\s*(/\S+)")
_ELF: Final = b"\x7fELF"

Question: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]


def question(program: str, environment: Mapping[str, str], prefixes: Iterable[str] = ()) -> Question:
    """What an identity depends on besides the contents of files. ``prefixes``: the absolute directories of ``-B``."""
    return (program, tuple(environment.get(name, "") for name in _SEARCH), tuple(prefixes))


def of_image(program: str, here: CompilerIdentity, image: str) -> CompilerIdentity:
    """The compiler that has this name in an image (``image`` is its digest), for one that is ``here``."""
    name = os.path.basename(program)
    return structs.replace(
        here,
        digest=blake3.blake3(f"image\0{image}\0{name}".encode("utf-8", "surrogateescape")).hexdigest(),
        path=name,
        version=f"{name} of an image",
        image=image,
    )


def of_preprocessed(here: CompilerIdentity) -> CompilerIdentity:
    """The same compiler, fed with what the preprocessor made: its objects say so, and its warnings are others."""
    digest = blake3.blake3(f"preprocessed\0{here.digest}".encode()).hexdigest()
    return structs.replace(here, digest=digest, version=f"{here.version}, in two steps")


class Identities:
    """Identities by question, each valid while none of its programs is touched. Not safe for threads but `probe`."""

    def __init__(self, *, entries_max: int = 256) -> None:
        self._known: dict[Question, tuple[CompilerIdentity, list[tuple[str, Signature]]]] = {}
        self._entries_max = entries_max

    def known(self, asked: Question) -> CompilerIdentity | None:
        """The answer when it is known and no program has changed."""
        found = self._known.get(asked)
        if found is None:
            return None
        identity, programs = found
        for path, signature in programs:
            try:
                if signature_of(os.stat(path)) != signature:
                    break
            except OSError:
                break
        else:
            return identity
        del self._known[asked]
        return None

    def remember(self, asked: Question, answer: "tuple[CompilerIdentity, list[tuple[str, Signature]]]") -> None:
        """Keep what :meth:`probe` found."""
        if len(self._known) >= self._entries_max:
            self._known.pop(next(iter(self._known)))
        self._known[asked] = answer

    @staticmethod
    def probe(asked: Question) -> tuple[CompilerIdentity, list[tuple[str, Signature]]]:
        """Ask the compiler and hash its programs. ``vendor`` None: no compiler that we know, or a script around one."""
        program, search, prefixes = asked
        environment = {name: value for name, value in zip(_SEARCH, search, strict=True) if value} | {"LC_ALL": "C"}
        path = os.path.realpath(program)
        programs = [(program, _signature(program)), (path, _signature(path))]
        unknown = CompilerIdentity(digest="", path=path, vendor=None)
        # A link such as ccache's has the name of a compiler and leads elsewhere; a script may do anything.
        if family_of(path) is None or not _is_elf(path):
            return unknown, programs
        version = _ask(path, environment, "--version")
        vendor = _vendor(version, path)
        if vendor is None:
            return unknown, programs
        parts = [*_programs(path, environment, prefixes, _PARTS if vendor is Vendor.GCC else _CLANG_PARTS)]
        if vendor is not Vendor.GCC:
            parts += [*_libraries(path, environment), *_CONFIGURED.findall(version)]
        hasher = blake3.blake3(vendor.value.encode())
        for part in (path, *parts):
            hasher.update(_hash_of(part))
            programs.append((part, _signature(part)))
        identity = CompilerIdentity(
            digest=hasher.hexdigest(),
            path=path,
            vendor=vendor,
            version=version.partition("\n")[0].strip(),
            target=_ask(path, environment, "-dumpmachine").strip(),
        )
        return identity, programs


def _vendor(version: str, path: str) -> Vendor | None:
    if "clang version" in version or "Apple clang" in version:
        return Vendor.CLANG_CL if "clang-cl" in os.path.basename(path) else Vendor.CLANG
    return Vendor.GCC if "Free Software Foundation" in version else None


def _programs(
    path: str, environment: Mapping[str, str], prefixes: Iterable[str], names: Iterable[str]
) -> Iterable[str]:
    """What the driver would run under these names."""
    for name in names:
        said = _ask(path, environment, *(f"-B{each}" for each in prefixes), f"-print-prog-name={name}").strip()
        found = said if "/" in said else shutil.which(said, path=environment.get("PATH") or os.defpath)
        if found and Path(found).is_file():
            yield os.path.realpath(found)


def _libraries(path: str, environment: Mapping[str, str]) -> Iterable[str]:
    """clang's own libraries hold the compiler; the C library does not matter for what it writes."""
    traced = _ask(path, {**environment, "LD_TRACE_LOADED_OBJECTS": "1"})
    return sorted({os.path.realpath(found) for found in _COMPILER_LIBRARIES.findall(traced)})


def _ask(path: str, environment: Mapping[str, str], *arguments: str) -> str:
    try:
        done = subprocess.run(
            [path, *arguments],
            env=dict(environment),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_ASK_S,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _is_elf(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == _ELF
    except OSError:
        return False


def _hash_of(path: str) -> bytes:
    hasher = blake3.blake3()
    hasher.update_mmap(path)
    return hasher.digest()


def _signature(path: str) -> Signature:
    try:
        return signature_of(os.stat(path))
    except OSError:
        return (0, 0, 0, 0, 0)
