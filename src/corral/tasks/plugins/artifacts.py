"""Plugin ``artifacts``: what a run leaves behind, taken out of its working directory into the blob store.

Collected when the command has ended, whether it succeeded or not. What is missing makes the run fail and leaves an
artifact of the kind ``error`` in its place; a line in the log only when the command itself succeeded, so that it does
not hide the real cause. A directory becomes a tree, a glob becomes one file artifact for each match.
"""

import asyncio
import mimetypes
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from corral.blobs.content import write_stream
from corral.kernel.errors import CorralError, InvalidSpec, NotFound, TooLarge
from corral.sandboxes.model import GIB, End, EntryKind, ExecResult, TreeLimits
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import refuse
from corral.tasks.hooks import HooksFailed
from corral.tasks.model import Artifact, ArtifactKind
from corral.tasks.paths import below, printable, relative_path_mistake
from corral.tasks.plugin import Plugin, RunContext, TaskPlugin
from corral.tasks.transfer import Taken, take_file, take_tree

PARALLEL: Final = 5
ARTIFACTS_MAX: Final = 1000
_WILD: Final = re.compile(r"[*?\[]")
_SHOWN_MAX: Final = 10


class ArtifactType(StrEnum):
    """What to look for at the path."""

    FILE = "file"
    DIRECTORY = "directory"
    GLOB = "glob"


class ArtifactSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to keep. ``name`` is the path when left out; a glob's matches are named ``name/path``."""

    path: Annotated[str, msgspec.Meta(description="Where it is, relative to the working directory")]
    name: Annotated[str, msgspec.Meta(description="What to call it; the path when left out")] = ""
    type: Annotated[ArtifactType, msgspec.Meta(description="What is there: file, directory or glob")] = (
        ArtifactType.FILE
    )
    optional: Annotated[bool, msgspec.Meta(description="Do not fail when it is missing")] = False

    def __post_init__(self) -> None:
        mistakes = []
        path = self.path.removesuffix("/") if self.type is ArtifactType.DIRECTORY else self.path
        if problem := relative_path_mistake(path, root_allowed=self.type is ArtifactType.DIRECTORY):
            mistakes.append(f"path: {problem}")
        if self.name and (problem := relative_path_mistake(self.name)):
            mistakes.append(f"name: {problem}")
        if not self.name and self.path == ".":
            mistakes.append("name: the whole working directory needs a name")
        refuse(mistakes)

    @property
    def shown_name(self) -> str:
        """What it is called."""
        return self.name or self.path.removesuffix("/")


class ArtifactFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload fields."""

    artifacts: Annotated[tuple[ArtifactSpec, ...], msgspec.Meta(description="What to keep when the command ended")] = ()

    def __post_init__(self) -> None:
        mistakes = []
        if len(self.artifacts) > ARTIFACTS_MAX:
            mistakes.append(f"artifacts: there are {len(self.artifacts)}; at most {ARTIFACTS_MAX} are allowed")
        seen: dict[str, int] = {}
        for index, each in enumerate(self.artifacts):
            if each.type is ArtifactType.GLOB and not each.name:
                continue
            if each.shown_name in seen:
                first = seen[each.shown_name]
                name = printable(each.shown_name)
                mistakes.append(f'artifacts[{index}].name: "{name}" is also the name of artifacts[{first}]')
            seen.setdefault(each.shown_name, index)
        refuse(mistakes)


class ArtifactsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one artifact, and of the matches of one glob."""

    file_bytes_max: int = 64 * GIB
    directory_bytes_max: int = 64 * GIB
    directory_entries_max: int = 1_000_000
    matches_max: int = 1000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    def limits(self) -> TreeLimits:
        """The same for one transfer."""
        return TreeLimits(
            total_bytes=self.directory_bytes_max, entries=self.directory_entries_max, file_bytes=self.file_bytes_max
        )


class ArtifactsPlugin(Plugin):
    """Keeps what runs leave."""

    name = "artifacts"
    fields = ArtifactFields

    def __init__(self, spool_dir: Path, config: ArtifactsConfig | None = None) -> None:
        """``spool_dir`` takes large files on their way; it must exist."""
        self._spool_dir = spool_dir
        self._config = config or ArtifactsConfig()

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        if fields is None or not fields.artifacts:
            return None
        return _Collector(run, fields.artifacts, self._spool_dir, self._config)


class _Collector(TaskPlugin):
    def __init__(
        self, run: RunContext, specs: tuple[ArtifactSpec, ...], spool_dir: Path, config: ArtifactsConfig
    ) -> None:
        self._run = run
        self._specs = specs
        self._spool_dir = spool_dir
        self._config = config

    async def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        if result.end is End.NOT_STARTED:
            return False  # nothing ran, so nothing is missing
        found: dict[int, list[Artifact]] = {}
        errors: list[Exception] = []
        turns = asyncio.Semaphore(PARALLEL)
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._specs)):
                group.create_task(self._collect(index, sandbox, turns, found, errors))
        if errors:
            raise HooksFailed(errors)
        artifacts = [artifact for index in sorted(found) for artifact in found[index]]
        self._run.artifacts += artifacts
        wrong = [artifact for artifact in artifacts if artifact.kind is ArtifactKind.ERROR]
        for artifact in wrong:
            sentence = f'artifact "{printable(artifact.name)}": {artifact.message}'
            if result.ok:
                self._run.log.error(sentence)
                self._run.say(sentence)
        return not wrong

    async def _collect(
        self,
        index: int,
        sandbox: Sandbox,
        turns: asyncio.Semaphore,
        found: dict[int, list[Artifact]],
        errors: list[Exception],
    ) -> None:
        spec = self._specs[index]
        async with turns:
            try:
                found[index] = await self._take(spec, sandbox)
            except NotFound:
                found[index] = [] if spec.optional else [_missing(spec)]
            except InvalidSpec as error:
                found[index] = [_error(spec.shown_name, f"invalid-resource-on-worker: {error.message}")]
            except TooLarge as error:
                found[index] = [_error(spec.shown_name, f"too-large-file-on-worker: {error.message}")]
            except CorralError as error:
                errors.append(error)

    async def _take(self, spec: ArtifactSpec, sandbox: Sandbox) -> list[Artifact]:
        run = self._run
        path = below(run.work, spec.path.removesuffix("/"))
        match spec.type:
            case ArtifactType.FILE:
                taken = await take_file(
                    sandbox,
                    run.blobs,
                    run.tenant,
                    path,
                    spool_dir=self._spool_dir,
                    file_bytes=self._config.file_bytes_max,
                )
                return [_file(spec.shown_name, taken)]
            case ArtifactType.DIRECTORY:
                return [await self._take_directory(spec, sandbox, path)]
            case ArtifactType.GLOB:
                return await self._take_matches(spec, sandbox)

    async def _take_directory(self, spec: ArtifactSpec, sandbox: Sandbox, path: str) -> Artifact:
        run = self._run
        if (await sandbox.stat(path)).kind is not EntryKind.DIRECTORY:
            raise InvalidSpec(f'"{printable(spec.path)}" is not a directory')
        taken = await take_tree(
            sandbox, run.blobs, run.tenant, path, spool_dir=self._spool_dir, limits=self._config.limits()
        )
        if taken.left_out:
            names = ", ".join(printable(name) for name in taken.left_out[:_SHOWN_MAX])
            count = len(taken.left_out)
            run.log.line(f'artifact "{spec.shown_name}": {count} symlinks that lead out of it are left out: {names}')
        return Artifact(
            name=spec.shown_name,
            kind=ArtifactKind.DIRECTORY,
            digest=str(taken.digest),
            size_bytes=taken.size_bytes,
            content_type="application/vnd.corral.tree+json",
        )

    async def _take_matches(self, spec: ArtifactSpec, sandbox: Sandbox) -> list[Artifact]:
        run = self._run
        base = glob_base(spec.path)
        pattern = glob_pattern(spec.path)
        matches: list[Artifact] = []
        tree = sandbox.read_tree(below(run.work, base), self._config.limits())
        async for entry, content in tree:
            path = "/".join(part for part in (base, entry.path) if part)
            if entry.kind is not EntryKind.FILE or pattern.fullmatch(path) is None:
                continue
            if len(matches) >= self._config.matches_max:
                raise TooLarge(f'more than {self._config.matches_max} files match "{printable(spec.path)}"')
            digest = await write_stream(
                run.blobs,
                run.tenant,
                content,
                spool_dir=self._spool_dir,
                bytes_max=self._config.file_bytes_max,
            )
            name = f"{spec.name}/{path}" if spec.name else path
            matches.append(_file(name, Taken(digest=digest, size_bytes=digest.size_bytes, executable=entry.executable)))
        if not matches:
            raise NotFound(f'nothing matches "{printable(spec.path)}"')
        return matches


def glob_base(pattern: str) -> str:
    """The directory below which a glob's matches are: its segments before the first wildcard."""
    base: list[str] = []
    for segment in pattern.split("/")[:-1]:
        if _WILD.search(segment):
            break
        base.append(segment)
    return "/".join(base)


@lru_cache(maxsize=256)
def glob_pattern(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a segment, ``**`` spans any number of them, ``[…]`` is one character."""
    return re.compile("".join(_translated(pattern)), re.DOTALL)


def _translated(pattern: str) -> Iterator[str]:
    segments = pattern.split("/")
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment == "**":
            yield ".*" if last else "(?:[^/]+/)*"
            continue
        yield from _translated_segment(segment)
        if not last:
            yield "/"


def _translated_segment(segment: str) -> Iterator[str]:
    position = 0
    while position < len(segment):
        character = segment[position]
        position += 1
        if character == "*":
            yield "[^/]*"
        elif character == "?":
            yield "[^/]"
        elif character == "[" and (end := segment.find("]", position + 1)) > 0:
            inside = segment[position:end].replace("\\", "\\\\")
            yield f"(?!/)[{'^' + inside[1:] if inside[0] == '!' else inside.replace('^', chr(92) + '^')}]"
            position = end + 1
        else:
            yield re.escape(character)


def _file(name: str, taken: Taken) -> Artifact:
    return Artifact(
        name=name,
        kind=ArtifactKind.FILE,
        digest=str(taken.digest),
        size_bytes=taken.size_bytes,
        content_type=mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream",
        executable=taken.executable,
    )


def _missing(spec: ArtifactSpec) -> Artifact:
    if spec.type is ArtifactType.GLOB:
        return _error(spec.shown_name, f'file-missing-on-worker: nothing matches "{printable(spec.path)}"')
    return _error(spec.shown_name, f'file-missing-on-worker: there is no {spec.type} "{printable(spec.path)}"')


def _error(name: str, message: str) -> Artifact:
    return Artifact(name=name, kind=ArtifactKind.ERROR, content_type="", message=message)
