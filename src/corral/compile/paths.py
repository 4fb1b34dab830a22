"""Names of files that hold in every checkout of a project.

The *root* of a project is the nearest directory above a compile that holds a file ``.corral``; without one, the
nearest that holds ``.git``. A name inside the root is written relative to it, any other absolute. Nothing is resolved:
``a/../b`` stays, since ``a`` may be a symbolic link.
"""

from collections.abc import Callable
from typing import Final

MARKER: Final = ".corral"
_GIT: Final = ".git"


def find_root(cwd: str, exists: Callable[[str], bool]) -> str:
    """The root of the project around the absolute directory ``cwd``; "" when nothing marks one."""
    git = ""
    directory = cwd.rstrip("/")
    while directory:
        if exists(f"{directory}/{MARKER}"):
            return directory
        if not git and exists(f"{directory}/{_GIT}"):
            git = directory
        directory = directory.rpartition("/")[0]
    return git


def relative(path: str, *, cwd: str, root: str) -> str:
    """``path``, as named by a compile in ``cwd``, relative to ``root`` when it lies within, else absolute."""
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if not path.startswith("/"):
        path = cwd if path in ("", ".") else f"{cwd}/{path}"
    if not root:
        return path
    if path == root:
        return "."
    return path[len(root) + 1 :] if path.startswith(root) and path[len(root)] == "/" else path


def absolute(path: str, *, root: str) -> str:
    """The opposite of :func:`relative`."""
    return path if path.startswith("/") else f"{root}/{path}"


def spelled(path: str, *, root: str) -> str:
    """``path`` as the command line has it, with a root in front replaced by a mark; for keys only."""
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return ROOT_MARK + path[len(root) :]
    return path


ROOT_MARK: Final = "\x02root"
"""Stands for the root in stored texts; no name contains it."""
