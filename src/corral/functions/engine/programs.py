"""Where the engine's parts are: our host, the wasmtime library of its wheel, and the wasmtime command."""

import hashlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import corral

HOST_VARIABLE: Final = "CORRAL_WASM_HOST"
_LINKERS: Final = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}
_NO_LIBRARY: Final = "the wasmtime library is not installed; `pip install wasmtime`"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """What is here. ``trouble`` says in one sentence why nothing can run; ``wasmtime`` is empty without the command.

    ``identity`` changes with everything that compiled code depends on: host, library, processor.
    """

    host: str = ""
    library: str = ""
    version: str = ""
    wasmtime: tuple[str, ...] = ()
    trouble: str = ""
    identity: str = ""


def find_parts() -> EngineParts:
    """Look for them; never starts or imports anything."""
    host = Path(os.environ.get(HOST_VARIABLE) or Path(corral.__file__).parent / "_native" / "corral-wasm-host")
    if not os.access(host, os.X_OK):
        return EngineParts(trouble=f"the host of functions is not at {host}; `make native`, or reinstall the wheel")
    library = _library()
    if library is None:
        return EngineParts(trouble=_NO_LIBRARY)
    version = _version(library)
    return EngineParts(
        host=str(host),
        library=str(library),
        version=f"wasmtime {version}",
        wasmtime=_command(),
        identity=_identity(host, library, version),
    )


def _library() -> Path | None:
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / f"linux-{platform.machine()}" / "_libwasmtime.so"
    return found if found.is_file() else None


def _version(library: Path) -> str:
    """By the name of the wheel's records; importlib.metadata would cost this process a megabyte."""
    records = sorted(library.parent.parent.parent.glob("wasmtime-*.dist-info"))
    return records[-1].name.removeprefix("wasmtime-").removesuffix(".dist-info") if records else "of unknown version"


def _command() -> tuple[str, ...]:
    """The wheel installs the program without its executable bit, so the dynamic linker starts it."""
    spec = importlib.util.find_spec("wasmtime_cli")
    if spec is None or spec.origin is None:
        return ()
    found = Path(spec.origin).parent / "wasmtime"
    if not found.is_file():
        return ()
    linker = _LINKERS.get(platform.machine(), "")
    return (str(found),) if os.access(found, os.X_OK) else (linker, str(found)) if os.access(linker, os.X_OK) else ()


def _identity(host: Path, library: Path, version: str) -> str:
    about = hashlib.sha256(host.read_bytes())
    status = library.stat()
    about.update(f"{version} {status.st_size} {status.st_mtime_ns} {platform.machine()} {_processor()}".encode())
    return about.hexdigest()


def _processor() -> str:
    """What code may be made for: the model and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    return " ".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
