"""Part one: build a project as a task, test it as a second one that depends on it, and see what is known afterwards."""

import json
import os
from pathlib import Path

from demo.shell import corral, say


def show_tasks(home: Path, source: Path, output: Path) -> None:
    """``output`` is where the artifacts go."""
    say("3. Build it as a task in a sandbox: no network, read-only root, our files in /work")
    build = "(cd zlib && ./configure && make -j2) && tar -cf built.tar zlib && ls -l zlib/libz.a"
    corral(
        *("run", "--name", "build zlib", "--input", f"{source}:zlib", "--timeout", "10m"),
        *("--artifact", "zlib/libz.a", "--artifact", "built.tar", "--output-dir", str(output)),
        *("--", "sh", "-c", build),
        cwd=home,
    )
    library = output / "zlib" / "libz.a"
    print(f"-> the artifact is on disk: {os.path.relpath(library)}, {library.stat().st_size:,} bytes")
    built = json.loads(corral("task", "list", "--json", cwd=home, quiet=True))["tasks"][0]["id"]

    say("4. Run its own tests as a second task that depends on the first and takes its output")
    corral(
        *("run", "--name", "test zlib", "--needs", built, "--input", f"artifact:{built}/built.tar"),
        *("--", "sh", "-c", "tar -xf built.tar && cd zlib && make test"),
        cwd=home,
    )

    say("5. What is known afterwards")
    corral("task", "list", cwd=home)
    corral("task", "story", built, cwd=home)
    corral("audit", "list", cwd=home)
    corral("why", built, cwd=home)
