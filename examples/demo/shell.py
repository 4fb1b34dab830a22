"""What the demonstration's parts share: headings, commands that are shown before they run, a source to work on."""

import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

BIN = Path(sys.executable).parent
HERE = Path(__file__).resolve().parent


def say(text: str) -> None:
    """A heading between the steps."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def show(*argv: str, cwd: Path, quiet: bool = False) -> str:
    """Show a command, run it, and stop the demonstration when it fails. ``quiet``: give its output, show nothing."""
    if not quiet:
        print(f"$ {shlex.join(argv)}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    ran = subprocess.run(argv, cwd=cwd, env=environment, stdout=subprocess.PIPE if quiet else None, check=False)
    if ran.returncode != 0:
        sys.exit(f"demo: `{shlex.join(argv)}` ended with status {ran.returncode}")
    return ran.stdout.decode() if quiet else ""


def corral(*arguments: str, cwd: Path, quiet: bool = False) -> str:
    """``show`` for a command of Corral's."""
    return show("corral", *arguments, cwd=cwd, quiet=quiet)


def fetched_source(package: str, into: Path) -> Path:
    """Download and unpack a Debian source package; the directory that it unpacked to."""
    subprocess.run([str(HERE / "fetch_debian_source.sh"), package, str(into)], check=True)
    (archive,) = into.glob(f"{package}_*.orig.tar.*")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    (source,) = (each for each in into.iterdir() if each.is_dir())
    return source
