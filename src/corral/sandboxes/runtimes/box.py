"""A box whose far end is a child process of ours: what all runtimes that start one have in common."""

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, SandboxFailed
from corral.sandboxes.cgroups import Cgroup
from corral.sandboxes.link import Link, Reseed, Setup
from corral.sandboxes.model import SandboxSpec, Size
from corral.sandboxes.ports import LimitEvents
from corral.sandboxes.runtimes import host_root
from corral.sandboxes.runtimes.child import Child, launcher_path
from corral.sandboxes.runtimes.home import Home

NOT_STARTED: Final = "the sandbox did not start: "
_WORDS_BYTES_MAX: Final = 4096
_END_BY_ITSELF_S: Final = 2.0
_END_KILLED_S: Final = 5.0
_STOP_WITHIN_S: Final = 15.0
_ANSWER_SLACK_S: Final = 1.0  # a limit of the talk itself explains more than ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What a runtime's own processes may use of a box's control group, beyond the box's size."""

    memory_bytes: int = 0
    processes: int = 0


_NO_OVERHEAD: Final = Overhead()


@dataclass(frozen=True, slots=True)
class Namespaces:
    """User and mount namespaces in which the program runs; see ``-n`` and ``-h`` of native/launch.

    Attributes:
        first: host id of their root, the next one is that of ``second``; 0 makes us their root, and nobody else is in
            them.
        second: the other user in them.
        hidden: directories that are empty in there.
    """

    first: int
    second: int = host_root.UID
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start the program that gets the link.

    Attributes:
        argv: the program and its arguments; run by the launcher.
        setup: what its agent is told.
        user: (uid, gid) to become first, or None to stay who we are.
        namespaces: to enter first, or None to stay where we are.
        stream: the program's descriptor that is the link: 0, or 3 (then 0 is /dev/null).
        descriptors: become 3, 4, … of the program, from the one after the link.
        program: the one of these numbers that is executed instead of ``argv[0]``; closed on the way.
        env: its environment; the agent passes none of it on.
        reseed: the agent was frozen after its setup; it is told this instead.
        folder: a directory that goes when the box goes.
        show: (directory, place): what ``user`` cannot reach by itself is shown to it there, and to nobody else.
        greet: what is said on the stream before the agent is there to be set up; it may raise CorralError.
        abrupt: it loses nothing when it is killed, so a stop does not wait for it to end by itself.
    """

    argv: Sequence[str]
    setup: Setup
    user: tuple[int, int] | None = None
    namespaces: Namespaces | None = None
    stream: Literal[0, 3] = 0
    descriptors: Sequence[int] = ()
    program: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    reseed: Reseed | None = None
    folder: Path | None = None
    show: tuple[str, str] | None = None
    greet: Callable[[socket.socket], Awaitable[None]] | None = None
    abrupt: bool = False


class ProcessBox:
    """See ``ports.Box``. Owns the child, its group, its link and its folder; made by ``start_box`` only."""

    def __init__(self, spec: SandboxSpec, home: Home, cgroup: Cgroup | None, folder: Path | None) -> None:
        self._spec = spec
        self._home = home
        self._cgroup = cgroup
        self._folder = folder
        self._child: Child | None = None
        self._abrupt = False
        self._link: Link | None = None
        self._events = LimitEvents()

    @property
    def spec(self) -> SandboxSpec:
        return self._spec

    @property
    def link(self) -> Link:
        assert self._link is not None, "start_box returned before the link was up"
        return self._link

    @property
    def pid(self) -> int:
        """The child's process id on the host, for tests and for people."""
        return self._child.pid if self._child is not None else 0

    def limit_events_nowait(self) -> LimitEvents:
        if self._cgroup is not None:
            now = self._cgroup.counters()
            self._events = self._events.at_least(out_of_memory=now.out_of_memory, process_limit=now.process_limit)
        return self._events

    async def stop(self) -> None:
        """See ``ports.Box.stop``. Raises SandboxFailed when something in it cannot be killed; the rest is freed."""
        failures: list[str] = []
        if self._link is not None:
            self._link.close()  # the agent kills everything and ends, and with it the namespaces
        if self._child is not None and not await self._end_child(self._child):
            failures.append(f"process {self._child.pid} does not die")
        if self._cgroup is not None:
            self.limit_events_nowait()  # for whoever asks afterwards why the box ended
            self._cgroup.kill()
            failures += await freed("its control group", self._cgroup.remove())
        if self._folder is not None:
            failures += await freed("its folder", asyncio.to_thread(_remove_folder, self._folder))
        leave(self._home, self._spec, failures)

    async def _end_child(self, child: Child) -> bool:
        if self._link is not None and not self._abrupt and await child.wait_ended(within_s=_END_BY_ITSELF_S):
            return True
        if self._cgroup is not None:
            self._cgroup.kill()
        child.kill()
        return await child.wait_ended(within_s=_END_KILLED_S)

    async def _start(self, launch: Launch, within_s: float) -> None:
        async def set_up(ours: socket.socket) -> None:
            if launch.greet is not None:
                ours.setblocking(False)
                await launch.greet(ours)
            if launch.reseed is None:
                self._link = await Link.open(ours, launch.setup, within_s=within_s)
            else:
                self._link = await Link.resume(ours, launch.setup, launch.reseed, within_s=within_s)

        await self._run(launch, set_up, within_s)

    async def _run(self, launch: Launch, talk: Callable[[socket.socket], Awaitable[None]], within_s: float) -> None:
        """Start the program and talk to it; its own words explain a failure. The socket is closed unless ``talk`` took
        it over, which it tells by not failing."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        words, words_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if launch.stream else -1
        first = (theirs.fileno(), words_in, words_in) if null < 0 else (null, words_in, words_in, theirs.fileno())
        self._abrupt = launch.abrupt
        try:
            try:
                self._child = Child.spawn(
                    self._argv(launch), descriptors=(*first, *launch.descriptors), env=dict(launch.env)
                )
            except OSError as error:
                raise SandboxFailed(f"the sandbox did not start: {error}") from error
            finally:
                theirs.close()
                os.close(words_in)
                if null >= 0:
                    os.close(null)
            if self._cgroup is None:
                self._home.note(self._spec.id, self._child)
            try:
                async with asyncio.timeout(within_s + _ANSWER_SLACK_S):
                    await talk(ours)
            except (CorralError, TimeoutError) as error:
                raise await self._explained(self._child, words, error, within_s) from error
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(words)

    async def _explained(
        self, child: Child, words: int, error: CorralError | TimeoutError, within_s: float
    ) -> SandboxFailed:
        await child.wait_ended(within_s=0.5)  # its last words come before its end
        said = _read_words(words) or (f"no answer within {within_s:g} s" if isinstance(error, TimeoutError) else "")
        cure = error.cure if isinstance(error, CorralError) else ""
        return SandboxFailed(f"{NOT_STARTED}{said or error}", cure=cure, runtime_status=child.status)

    def _argv(self, launch: Launch) -> list[str]:
        argv = [str(launcher_path())]
        for file in self._cgroup.join_files if self._cgroup is not None else ():
            argv += ["-g", file]
        if launch.show is not None:
            argv += ["-b", launch.show[0], "-t", launch.show[1]]
        if launch.user is not None:
            argv += ["-u", f"{launch.user[0]}:{launch.user[1]}"]
        if launch.namespaces is not None:
            argv += ["-n", f"{launch.namespaces.first}:{launch.namespaces.second}"]
            argv += [word for directory in launch.namespaces.hidden for word in ("-h", directory)]
        if launch.program is not None:
            argv += ["-x", str(launch.program)]
        highest = (launch.stream or 2) + len(launch.descriptors)
        return [*argv, "-k", str(highest), "--", *launch.argv]


async def start_box(
    spec: SandboxSpec,
    home: Home,
    prepare: Callable[[], Launch],
    *,
    within_s: float,
    folder: Path | None = None,
    overhead: Overhead = _NO_OVERHEAD,
) -> ProcessBox:
    """Start a box; ``prepare`` is called when its group and folder exist.

    Raises and Cancellation: as ``ports.Runtime.start``.
    """
    box = _new_box(spec, home, folder, overhead)
    try:
        await box._start(prepare(), within_s)
    except BaseException:
        await finish(box.stop(), within_s=_STOP_WITHIN_S)
        raise
    return box


async def run_program(
    spec: SandboxSpec,
    home: Home,
    prepare: Callable[[], Launch],
    talk: Callable[[socket.socket], Awaitable[None]],
    *,
    within_s: float,
    overhead: Overhead = _NO_OVERHEAD,
) -> None:
    """Start what would be a box, talk to it over its stream, and free it: nothing of it is left.

    Raises and Cancellation: as ``ports.Runtime.start``.
    """
    box = _new_box(spec, home, None, overhead)
    try:

        async def talked(ours: socket.socket) -> None:
            ours.setblocking(False)
            await talk(ours)
            ours.close()

        await box._run(prepare(), talked, within_s)
    finally:
        await finish(box.stop(), within_s=_STOP_WITHIN_S)


def _new_box(spec: SandboxSpec, home: Home, folder: Path | None, overhead: Overhead) -> ProcessBox:
    size = replace(
        spec.size,
        memory_bytes=spec.size.memory_bytes + overhead.memory_bytes,
        processes=spec.size.processes + overhead.processes,
    )
    return ProcessBox(spec, home, enter(home, spec, size), folder)


# ---- what every box does first and last, whatever it is ----


def enter(home: Home, spec: SandboxSpec, size: Size) -> Cgroup | None:
    """The first step of a box: the home knows it, and its control group holds ``size``. Raises SandboxFailed."""
    home.enter(spec.id)
    try:
        return home.cgroups.create(spec.id, size)
    except OSError as error:
        home.forget(spec.id)
        raise SandboxFailed(f"no control group for the sandbox: {error}") from error


async def freed(what: str, freeing: Awaitable[object]) -> Sequence[str]:
    """Await ``freeing``; a sentence when ``what`` stays, so that the rest is freed all the same."""
    try:
        await freeing
    except (OSError, SandboxFailed) as error:
        return (f"{what} stays: {error}",)
    return ()


def leave(home: Home, spec: SandboxSpec, failures: Sequence[str]) -> None:
    """The last step of a stop: the home forgets the box. Raises SandboxFailed when something stays, for a sweep."""
    if failures:
        raise SandboxFailed(f"sandbox {spec.id} could not be freed: {'; '.join(failures)}", id=spec.id)
    home.forget(spec.id)


def _read_words(descriptor: int) -> str:
    with suppress(BlockingIOError):
        return os.read(descriptor, _WORDS_BYTES_MAX).decode("utf-8", "replace").strip()
    return ""


def _remove_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
