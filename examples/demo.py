"""Build and test a real C project in Corral's sandboxes, and show what Corral tells about it. `make demo` runs this.

The project is zlib, taken as a source package from the machine's own Debian mirror. Every step is a command that you
could have typed; it is printed before it runs.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

CORRAL = [str(Path(sys.executable).parent / "corral")]
HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "build" / "demo"
START_S = 60.0
STOP_S = 30.0


def say(text: str) -> None:
    """A heading between the steps."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def corral(*arguments: str, cwd: Path, capture: bool = False) -> str:
    """Show a command, run it, and stop the demo when it fails."""
    print(f"$ corral {shlex.join(arguments)}", flush=True)
    ran = subprocess.run([*CORRAL, *arguments], cwd=cwd, stdout=subprocess.PIPE if capture else None, check=False)
    if ran.returncode != 0:
        sys.exit(f"demo: `corral {arguments[0]}` ended with status {ran.returncode}")
    return ran.stdout.decode() if capture else ""


def fetched_source(package: str, into: Path) -> Path:
    """Download and unpack a Debian source package; the directory that it unpacked to."""
    subprocess.run([str(HERE / "fetch_debian_source.sh"), package, str(into)], check=True)
    (archive,) = into.glob(f"{package}_*.orig.tar.*")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    (source,) = (each for each in into.iterdir() if each.is_dir())
    return source


class Up:
    """`corral up` on free ports and a fresh data directory, for as long as the `with` block lasts."""

    def __init__(self, home: Path) -> None:
        self._ready = home / "ready"
        self._log = home / "corral.log"
        arguments = ["--data-dir", str(home / "data"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*CORRAL, "up", *arguments, "--ready-file", str(self._ready)], stdout=log, stderr=log
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
        say("1. Start Corral: a scheduler and a worker on this machine")
        print("$ corral up")
        with Up(home):
            say("2. Take the source of a real C project")
            source = fetched_source("zlib", home / "source")
            files = sum(1 for each in source.rglob("*") if each.is_file())
            print(f"{source.name}: {files} files")

            say("3. Build it as a task in a sandbox: no network, read-only root, our files in /work")
            build = "(cd zlib && ./configure && make -j2) && tar -cf built.tar zlib && ls -l zlib/libz.a"
            corral(
                *("run", "--name", "build zlib", "--input", f"{source}:zlib", "--timeout", "10m"),
                *("--artifact", "zlib/libz.a", "--artifact", "built.tar", "--output-dir", str(OUTPUT)),
                *("--", "sh", "-c", build),
                cwd=home,
            )
            library = OUTPUT / "zlib" / "libz.a"
            print(f"-> the artifact is on disk: {os.path.relpath(library)}, {library.stat().st_size:,} bytes")
            built = json.loads(corral("task", "list", "--json", cwd=home, capture=True))["tasks"][0]["id"]

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
            say(f"Done in {time.monotonic() - began_s:.0f} s; stopping Corral")
    print(
        "Where to look next:\n"
        "  .venv/bin/corral up              run it here\n"
        "  .venv/bin/corral run -- uname -a a command in a sandbox\n"
        "  .venv/bin/corral doctor          which kinds of isolation work on this machine\n"
        "  docs/howto/tasks.md              tasks, artifacts, caches, dependencies"
    )


if __name__ == "__main__":
    main()
