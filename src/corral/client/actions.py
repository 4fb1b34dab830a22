"""Actions over REST: build them from local files, execute them, fetch what they leave, say what differs."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from corral.actions.adapters.messages import (
    read_action,
    read_command,
    read_directory,
    read_tree,
    write_action,
    write_command,
    write_directory,
)
from corral.actions.building import TreeBuilder
from corral.actions.explain import WholeAction, explain
from corral.actions.model import Action, ActionDirectory, Command
from corral.blobs.content import file_pieces, pieces_of, read_bytes
from corral.blobs.parallel import run_all
from corral.client.action_model import ActionView, ExecutionView, OutputView
from corral.client.blobs import RestBlobs
from corral.client.connection import Connection, segment
from corral.kernel.digest import Digest, Digester, HashFunction
from corral.kernel.errors import InvalidSpec, SchedulerUnavailable

_MINE: Final = ""
_MESSAGE_BYTES_MAX: Final = 64 * 1024**2
_AT_ONCE: Final = 8
_POLL_S: Final = 20.0
_RETRY_S: Final = 0.25
_ABSENT_MAX_S: Final = 60.0
_PIECE_BYTES: Final = 1024**2

OnUpdate = Callable[[ExecutionView], None]


def _nobody(view: ExecutionView) -> None:
    """Nobody wants to know."""


class Actions:
    """The caller's actions."""

    def __init__(self, connection: Connection, blobs: RestBlobs) -> None:
        self._connection = connection
        self._blobs = blobs

    async def upload(
        self,
        command: Command,
        inputs: Mapping[str, Path],
        *,
        timeout_s: float | None = None,
        do_not_cache: bool = False,
        salt: bytes = b"",
        function: HashFunction = HashFunction.SHA256,
    ) -> Digest:
        """Build an action and store what the scheduler lacks of it; the action's digest.

        Args:
            inputs: local files and directories, by their path below the input root; "" or "." is the root itself.

        Raises: InvalidSpec for what cannot be read, or is neither file, directory nor link; what the store raises.
        """
        local: dict[Digest, Path] = {}
        builder = TreeBuilder(function)
        for path, source in inputs.items():
            await asyncio.to_thread(_add, builder, "" if path == "." else path.strip("/"), source, function, local)
        built = builder.build()
        encoded = write_command(command)
        action = Action(
            command=Digest.of(encoded, function),
            input_root=built.root,
            timeout_s=timeout_s,
            do_not_cache=do_not_cache,
            salt=salt,
        )
        data = write_action(action)
        digest = Digest.of(data, function)
        small = {**built.blobs, action.command: encoded, digest: data}
        wanted = [each for each in (*small, *local) if each.size_bytes]
        missing = await self._blobs.find_missing(_MINE, wanted)
        await run_all((self._store(each, small, local) for each in missing), at_once=_AT_ONCE)
        return digest

    async def run(
        self,
        action: Digest,
        *,
        skip_cache_lookup: bool = False,
        priority: int = 0,
        on_update: OnUpdate = _nobody,
    ) -> ExecutionView:
        """Execute a stored action and wait for its end, whatever that is.

        Cancellation: the execution goes on; ``cancel`` ends it.
        """
        view = await self.begin(action, skip_cache_lookup=skip_cache_lookup, priority=priority, wait_s=_POLL_S)
        on_update(view)
        return view if view.done else await self.wait_ended(view.execution, on_update=on_update)

    async def begin(
        self, action: Digest, *, skip_cache_lookup: bool = False, priority: int = 0, wait_s: float = 0.0
    ) -> ExecutionView:
        """Begin to execute a stored action, or find its result; waits up to ``wait_s`` for the end."""
        query = {"wait_s": wait_s, "priority": priority, "skip_cache_lookup": skip_cache_lookup or None}
        path = f"/actions/{segment(str(action))}/execute"
        return await self._connection.call("POST", path, ExecutionView, query=query, timeout_s=wait_s + 30)

    async def wait_ended(self, execution: str, *, on_update: OnUpdate = _nobody) -> ExecutionView:
        """The end of an execution, whatever that is. A scheduler that is restarted meanwhile is waited for.

        Raises: NotFound; SchedulerUnavailable when none answers for a minute.
        """
        absent_s = 0.0
        while True:
            try:
                view = await self.wait(execution, wait_s=_POLL_S)
            except SchedulerUnavailable:
                if absent_s >= _ABSENT_MAX_S:
                    raise
                absent_s += _RETRY_S
                await asyncio.sleep(_RETRY_S)
                continue
            absent_s = 0.0
            on_update(view)
            if view.done:
                return view

    async def wait(self, execution: str, *, wait_s: float = 0.0) -> ExecutionView:
        """Where an execution stands, after up to ``wait_s``. Raises NotFound."""
        return await self._connection.call(
            "GET",
            f"/actions/executions/{segment(execution)}",
            ExecutionView,
            query={"wait_s": wait_s},
            timeout_s=wait_s + 30,
        )

    async def cancel(self, execution: str) -> None:
        """End an execution. Raises NotFound."""
        await self._connection.call("DELETE", f"/actions/executions/{segment(execution)}", object)

    async def show(self, action: Digest) -> ActionView:
        """What a digest is. Raises NotFound."""
        return await self._connection.call("GET", f"/actions/{segment(str(action))}", ActionView)

    async def text(self, digest: str) -> AsyncGenerator[bytes, None]:
        """The content of a stream that a result names; nothing for ""."""
        if digest:
            async for piece in self._blobs.read(_MINE, Digest.parse(digest)):
                yield piece

    async def explain(self, first: Digest, second: Digest) -> list[str]:
        """What differs between two stored actions, as sentences. Raises NotFound."""
        both = [await self._whole(first), await self._whole(second)]
        return explain(both[0], both[1])

    async def fetch(self, outputs: Sequence[OutputView], into: Path) -> list[Path]:
        """Write outputs below ``into``; what is there is replaced, links are never followed. Raises InvalidSpec."""
        written = []
        for output in outputs:
            target = into / _safe(output.path)
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            if output.kind == "file":
                await self._fetch_file(Digest.parse(output.digest), target, executable=output.executable)
            elif output.kind == "symlink":
                target.unlink(missing_ok=True)
                target.symlink_to(output.target)
            else:
                await self._fetch_directory(Digest.parse(output.digest), target)
            written.append(target)
        return written

    async def _fetch_directory(self, tree: Digest, target: Path) -> None:
        data = await read_bytes(self._blobs, _MINE, tree, bytes_max=_MESSAGE_BYTES_MAX)
        top, *below = read_tree(data, tree.function)
        known = {Digest.of(write_directory(each), tree.function): each for each in below}
        waiting = [(target, top)]
        while waiting:
            folder, directory = waiting.pop()
            await asyncio.to_thread(folder.mkdir, exist_ok=True)
            for file in directory.files:
                await self._fetch_file(file.digest, folder / file.name, executable=file.executable)
            for link in directory.symlinks:
                (folder / link.name).unlink(missing_ok=True)
                (folder / link.name).symlink_to(link.target)
            for each in directory.directories:
                if each.digest not in known:
                    raise InvalidSpec(f"the tree {tree} names a directory that it does not hold")
                waiting.append((folder / each.name, known[each.digest]))

    async def _fetch_file(self, digest: Digest, target: Path, *, executable: bool) -> None:
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as file:
                if digest.size_bytes:
                    async for piece in self._blobs.read(_MINE, digest):
                        await asyncio.to_thread(file.write, piece)
            partial.chmod(0o755 if executable else 0o644)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    async def _whole(self, digest: Digest) -> WholeAction:
        action = read_action(await self._message(digest), digest.function)
        command = read_command(await self._message(action.command))
        directories: dict[Digest, ActionDirectory] = {}
        waiting = [action.input_root]
        while waiting:
            each = waiting.pop()
            if each not in directories:
                directory = directories[each] = read_directory(await self._message(each), each.function)
                waiting += [below.digest for below in directory.directories]
        return WholeAction(action, command, directories)

    async def _message(self, digest: Digest) -> bytes:
        if not digest.size_bytes:
            return b""
        return await read_bytes(self._blobs, _MINE, digest, bytes_max=_MESSAGE_BYTES_MAX)

    async def _store(self, digest: Digest, small: Mapping[Digest, bytes], local: Mapping[Digest, Path]) -> None:
        if digest in small:
            await self._blobs.write(_MINE, digest, pieces_of(small[digest]))
            return
        with local[digest].open("rb") as file:
            await self._blobs.write(_MINE, digest, file_pieces(file))


def _add(builder: TreeBuilder, path: str, source: Path, function: HashFunction, local: dict[Digest, Path]) -> None:
    try:
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode) and path:
            builder.add_symlink(path, os.readlink(source))
        elif source.is_dir():
            builder.add_directory(path)
            for entry in sorted(source.iterdir()):
                _add(builder, f"{path}/{entry.name}" if path else entry.name, entry, function, local)
        elif stat.S_ISREG(status.st_mode) and path:
            digest = _digest_of(source, function)
            local[digest] = source
            builder.add_file(path, digest, executable=bool(status.st_mode & stat.S_IXUSR))
        else:
            raise InvalidSpec(f"{source}: is neither a file, a directory nor a link", field="input")
    except OSError as error:
        raise InvalidSpec(f"{source}: cannot be read: {error.strerror}", field="input") from error


def _digest_of(source: Path, function: HashFunction) -> Digest:
    digester = Digester(function)
    with source.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digester.update(piece)
    return digester.digest()


def _safe(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidSpec(f'the output "{path[:100]}" would be written outside of the directory', field="path")
    return path
