"""`pip install` is enough for one machine: the wheel, in an environment and a directory of its own, does it all.

The dependencies come from the environment that runs the tests, so that no index is asked; that none is missing from
the wheel's list is what ``tests/spec/test_dependencies.py`` shows.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral.testing.function_load import printing
from corral.testing.processes import clean_environment, public_directory, wait_until, why_no_agent

REPOSITORY = Path(__file__).parents[2]
NATIVE = ("agent", "cc", "guest", "launch", "stage", "wasm-host")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "-w", folder, REPOSITORY], check=True, timeout=200)
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Stranger:
    """Somebody who has installed the wheel, in an empty directory."""

    home: Path
    scripts: Path

    def run(self, *arguments: str, env: Mapping[str, str] = {}) -> str:
        done = subprocess.run(
            [self.scripts / "corral", *arguments],
            env={**self.environment(), **env},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        found = {key: value for key, value in clean_environment().items() if not key.startswith(("PYTHON", "VIRTUAL"))}
        return found | {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}


@pytest.fixture(scope="module")
def stranger(wheel: Path) -> Iterator[Stranger]:
    with public_directory() as home:
        where = home / "venv"
        venv.create(where, symlinks=True)
        packages = where / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(where), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=100)
        yield Stranger(home, where / "bin")


@pytest.fixture(scope="module")
def up(stranger: Stranger) -> Iterator[dict[str, str]]:
    """The environment of a client of a `corral up` that was installed so."""
    ready, log = stranger.home / "ready", stranger.home / "log"
    settings = ("reapi.address=off", "engine.front.listen=127.0.0.1:0")
    command = [str(stranger.scripts / "corral"), "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    command += ["--ready-file", str(ready), *(word for each in settings for word in ("--set", each))]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=stranger.home, env=stranger.environment(), stdout=out, stderr=out)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, "corral up", within_s=90, log=log)
        assert process.poll() is None, log.read_text()
        yield {"CORRAL_URL": ready.read_text().split()[1].removeprefix("http=")}
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def test_the_wheel_is_of_one_platform_and_carries_every_native_program(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert wheel.name.endswith(f"-py3-none-{sysconfig.get_platform().replace('-', '_')}.whl")
    assert {f"corral/_native/corral-{each}" for each in NATIVE} <= names
    agent = zipfile.ZipFile(wheel).getinfo("corral/_native/corral-agent")
    assert agent.file_size < 200 * 1024
    assert not [name for name in names if not name.startswith(("corral/", "corral-"))]


def test_it_is_the_installed_package_that_runs(stranger: Stranger) -> None:
    python = [str(stranger.scripts / "python3"), "-P", "-c", "import corral; print(corral.__file__)"]
    done = subprocess.run(python, cwd=stranger.home, env=stranger.environment(), capture_output=True, check=True)

    assert os.fsdecode(done.stdout).startswith(str(stranger.home))


def test_the_doctor_finds_a_sandbox_that_works(stranger: Stranger) -> None:
    report = json.loads(stranger.run("doctor", "--json"))

    works = {each["name"]: each["works"] for each in report["runtimes"]}
    assert works["bubblewrap"]


def test_a_task_an_action_a_compile_and_a_function_work(stranger: Stranger, up: dict[str, str]) -> None:
    (stranger.home / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n')
    (stranger.home / "hello.wasm").write_bytes(printing("from a function"))
    compiles = {"CORRAL_CC_DIR": str(stranger.home / "cc")}

    assert stranger.run("run", "--", "echo", "from a task", env=up) == "from a task\n"
    assert stranger.run("run", "-I", "a.c", "-a", "a", "--", "gcc", "-o", "a", "a.c", env=up) == ""
    assert subprocess.check_output([stranger.home / "a"]) == b"compiled\n"
    stranger.run("action", "run", "-q", "-o", "out", "--", "sh", "-c", "echo from an action > out", env=up)
    assert (stranger.home / "out").read_text() == "from an action\n"
    for _ in range(2):
        stranger.run("cc", "gcc", "-c", "a.c", "-o", "a.o", env=compiles)
    assert json.loads(stranger.run("cc", "stats", "--json", env=compiles))["hits"] == 1
    stranger.run("cc", "stop", env=compiles)
    stranger.run("fn", "deploy", "hello", "hello.wasm", env=up)
    assert "from a function" in stranger.run("fn", "call", "hello", env=up)


def test_a_python_that_is_gone_is_said_to_be_that(stranger: Stranger) -> None:
    (stranger.home / "bin").mkdir()
    script = stranger.home / "bin" / "corral"
    script.write_bytes((stranger.scripts / "corral").read_bytes())
    script.chmod(0o755)
    (stranger.home / "bin" / "python3").symlink_to("/does/not/exist")

    done = subprocess.run(
        [script, "--version"], env=stranger.environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr == f"corral: error: {stranger.home}/bin/python3 cannot be run; install Corral again\n"
