"""What Corral does, on real input: tasks, cached compiles and functions. `make demo` runs this.

The project is zlib, taken as a source package from the machine's own Debian mirror. Every step is a command that you
could have typed; it is printed before it runs.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.compiles import show_compiles
from demo.functions import show_functions
from demo.shell import BIN, HERE, fetched_source, say
from demo.tasks import show_tasks

OUTPUT = HERE.parent.parent / "build" / "demo"
START_S = 60.0
STOP_S = 30.0


class Up:
    """`corral up` on free ports and a fresh data directory, for as long as the `with` block lasts."""

    def __init__(self, home: Path) -> None:
        self._ready = home / "ready"
        self._log = home / "corral.log"
        arguments = ["--data-dir", str(home / "data"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        arguments += ["--set", "engine.front.listen=127.0.0.1:0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(BIN / "corral"), "up", *arguments, "--ready-file", str(self._ready)], stdout=log, stderr=log
            )

    def __enter__(self) -> "Up":
        deadline_s = time.monotonic() + START_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                sys.exit(f"demo: corral up did not start; it said:\n{self._log.read_text()}")
            time.sleep(0.05)
        line = self._ready.read_text().strip()
        print(line)
        os.environ["CORRAL_URL"] = dict(word.split("=", 1) for word in line.split() if "=" in word)["http"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """The whole demonstration."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corral-demo-") as directory:
        home = Path(directory)
        # a compile daemon and cache of its own, so that the first compile is the first
        os.environ |= {"CORRAL_CC_DIR": str(home / "cc"), "XDG_CACHE_HOME": str(home / "cache")}
        say("1. Start Corral: a scheduler and a worker on this machine")
        print("$ corral up")
        with Up(home):
            say("2. Take the source of a real C project")
            source = fetched_source("zlib", home / "source")
            files = sum(1 for each in source.rglob("*") if each.is_file())
            print(f"{source.name}: {files} files")
            show_tasks(home, source, OUTPUT)
            show_compiles(home, source)
            show_functions(home)
            say(f"Done in {time.monotonic() - began_s:.0f} s; stopping Corral")
    print(
        "Where to look next:\n"
        "  .venv/bin/corral up              run it here\n"
        "  .venv/bin/corral run -- uname -a a command in a sandbox\n"
        "  .venv/bin/corral doctor          which kinds of isolation work on this machine\n"
        "  docs/howto                       tasks, images, compiles, Bazel, functions, machines, operation"
    )


if __name__ == "__main__":
    main()
