"""What a path in a payload may be. Pure; used at submission, and again where the path is used."""

import re
from typing import Final

PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
WORK: Final = "/work"
"""The task's working directory in every sandbox; relative paths of a payload start here."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def relative_path_mistake(path: str, *, root_allowed: bool = False) -> str:
    """Why ``path`` is no path below the working directory, or "". ``root_allowed``: "." means the directory itself."""
    shown = f'"{printable(path)}"'
    if root_allowed and path == ".":
        return ""
    problem = _shape_mistake(path)
    if problem:
        return f"{shown} {problem}"
    if path.startswith("/"):
        return f"{shown} is absolute; write a path relative to the task's working directory"
    segments = path.split("/")
    if ".." in segments:
        return f'{shown} leaves the task\'s working directory; ".." is not allowed'
    if "" in segments or "." in segments:
        return f'{shown} has an empty or "." segment; write it as a/b/c'
    if any(len(segment.encode()) > NAME_BYTES_MAX for segment in segments):
        return f"{shown} has a name longer than {NAME_BYTES_MAX} bytes"
    return ""


def directory_mistake(path: str) -> str:
    """Why ``path`` is no directory to start in: absolute inside the sandbox, or relative to the working directory."""
    if not path or path == "/":
        return ""
    return relative_path_mistake(path.removeprefix("/").removesuffix("/"), root_allowed=not path.startswith("/"))


def below(work: str, path: str) -> str:
    """The absolute path, inside the sandbox, of a checked relative path; ``work`` is the working directory."""
    return work if path in ("", ".") else f"{work}/{path}"


def absolute_directory(path: str, work: str) -> str:
    """The absolute directory, inside the sandbox, that a checked ``cwd`` means."""
    return path if path.startswith("/") else below(work, path.removesuffix("/"))


def printable(text: str) -> str:
    """At most 100 characters of ``text``, control characters escaped, fit for one line of a message."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text[:100]) + ("…" if len(text) > 100 else "")


def printable_line(text: str) -> str:
    """All of ``text`` on one line, control characters escaped."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\n", " "))


def _shape_mistake(path: str) -> str:
    if not path:
        return "is empty"
    if "\x00" in path:
        return "holds a NUL byte"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(encoded) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    return ""
