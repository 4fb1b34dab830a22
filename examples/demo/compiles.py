"""Part two: the same project compiled through the cache, in two checkouts, and why one file was compiled again."""

import shutil
from pathlib import Path

from demo.shell import corral, say, show


def show_compiles(home: Path, source: Path) -> None:
    """Compile, compile elsewhere, change a header."""
    say("6. Compile it on this machine with `corral cc`, then in a second checkout: nothing is compiled twice")
    first, second = home / "first", home / "second"
    for checkout in (first, second):
        shutil.copytree(source, checkout)
        (checkout / ".corral").touch()  # here a project begins: paths below it are the same in every checkout
        show("sh", "-c", "./configure >configure.out", cwd=checkout)
        show("sh", "-c", 'make -j2 CC="corral cc gcc" libz.a >make.out', cwd=checkout)
        corral("cc", "stats", cwd=checkout)

    say("7. Change a header, build again, and ask why a file was compiled")
    header = second / "zutil.h"
    header.write_text(header.read_text() + "\n#define CHANGED 1\n")
    show("sh", "-c", 'make -j2 CC="corral cc gcc" libz.a >make.out', cwd=second)
    corral("cc", "explain", "inflate.c", cwd=second)
    corral("cc", "stop", cwd=second)
