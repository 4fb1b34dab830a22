"""`corral cc install-links`."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from corral.cli.lazy import verb_app
from corral.compile.grammars.names import family_of
from corral.entry import WRAPPER
from corral.kernel.errors import InvalidSpec

_PLAIN: Final = ("cc", "c++", "gcc", "g++", "clang", "clang++")
_MARK: Final = ".corral-cc"
Directory = Annotated[str, typer.Argument(metavar="DIR", help="Where the links go; put it first on PATH.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these, such as arm-linux-gcc-12.")]


def install_links(directory: Directory, names: Names = None) -> None:
    """Make links, named as the compilers, to the wrapper.

    Without NAME: one for each compiler on PATH, versioned and cross compilers too.
    """
    if not Path(WRAPPER).is_file():
        raise InvalidSpec(f"{WRAPPER} is missing", cure="`make native` builds it")
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    # Which Python has the daemon: a wrapper that was called by a link looks here.
    (place / _MARK).write_text(f"{sys.executable}\n")
    wanted = names or _compilers(place)
    for name in wanted:
        if "/" in name or family_of(name) is None:
            raise InvalidSpec(
                f'"{name}" is not the name of a compiler', cure="such as gcc, clang++-14 or arm-linux-gcc"
            )
        _link(place / name)
    sys.stdout.write(f"{len(wanted)} links in {place}: {' '.join(wanted)}\n")
    if str(place.absolute()) not in os.environ.get("PATH", "").split(":"):
        sys.stdout.write(f'use them with: export PATH="{place.absolute()}:$PATH"\n')


def _compilers(place: Path) -> list[str]:
    found = {name for name in _PLAIN if shutil.which(name)}
    for directory in os.environ.get("PATH", "").split(":"):
        if not directory or Path(directory).absolute() == place.absolute():
            continue
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        found.update(name for name in names if family_of(name) is not None and shutil.which(name))
    return sorted(found)


def _link(path: Path) -> None:
    """Replaces a link; a file that is none is somebody's own."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        raise InvalidSpec(f"{path} is there already and is no link", cure="name another directory")
    path.symlink_to(WRAPPER)


app = verb_app(install_links)
