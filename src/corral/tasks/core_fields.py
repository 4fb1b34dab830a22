"""The payload fields that every task has, whatever plugins the worker runs: what to run, on what, with what."""

import math
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from corral.images.model import Reference
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec
from corral.kernel.ids import is_id
from corral.kernel.units import format_size, parse_size
from corral.sandboxes.model import MIB, Size
from corral.tasks.paths import directory_mistake, printable, relative_path_mistake

ARGUMENT_BYTES_MAX: Final = 131_071
"""Linux refuses a longer single argument (MAX_ARG_STRLEN, less the final NUL)."""
COMMAND_BYTES_MAX: Final = 1 * MIB
INPUTS_MAX: Final = 10_000
_ROOT: Final = "root:"
_MEMORY_MIN: Final = 4 * MIB
_MEMORY_MAX: Final = 64 * 1024**4
_COUNT_MAX: Final = 100_000_000


def refuse(mistakes: list[str]) -> None:
    """Raise InvalidSpec with all mistakes, if there are any."""
    if mistakes:
        raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))


class ArtifactReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An artifact of an earlier task of the same tenant; ``run`` None means its last run."""

    task: str
    name: str
    run: int | None = None

    def __post_init__(self) -> None:
        mistakes = []
        if not is_id(self.task, "task"):
            mistakes.append(f'task: "{printable(self.task)}" is not the id of a task; one looks like task_01k9x4…')
        if not self.name:
            mistakes.append("name: is empty; name one of that task's artifacts")
        if self.run is not None and not 0 <= self.run <= 1_000_000:
            mistakes.append(f"run: {self.run} is not the number of a run; the first run is 0")
        refuse(mistakes)

    @property
    def key(self) -> str:
        """How a claim names what this refers to: ``<task>/<run or "last">/<name>``."""
        return f"{self.task}/{'last' if self.run is None else self.run}/{self.name}"


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something to put into the working directory before the command starts; exactly one source."""

    path: Annotated[str, msgspec.Meta(description='Where to put it, relative to the working directory; "." for a tree')]
    digest: Annotated[str, msgspec.Meta(description="A file: the digest of an uploaded blob")] = ""
    tree: Annotated[str, msgspec.Meta(description="A directory: the digest of an uploaded tree")] = ""
    artifact: ArtifactReference | None = None
    executable: Annotated[bool, msgspec.Meta(description="Set the executable bit (files only)")] = False

    def __post_init__(self) -> None:
        mistakes = []
        if problem := relative_path_mistake(self.path, root_allowed=not self.digest):
            mistakes.append(f"path: {problem}")
        sources = [name for name in ("digest", "tree", "artifact") if getattr(self, name)]
        if len(sources) != 1:
            given = " and ".join(sources) or "none of them is given"
            mistakes.append(f"digest: exactly one of digest, tree and artifact says what the input is; {given}")
        for name in ("digest", "tree"):
            if text := getattr(self, name):
                mistakes += digest_mistakes(text, name)
        if self.executable and self.tree:
            mistakes.append("executable: a tree knows which of its files are executable; leave this out")
        refuse(mistakes)


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard limits of the task's sandbox; what is left out is the worker's default."""

    memory: Annotated[str | int | None, msgspec.Meta(description='Memory, such as "2GB"')] = None
    cpus: Annotated[float | None, msgspec.Meta(description="CPUs, such as 1.5")] = None
    processes: Annotated[int | None, msgspec.Meta(description="Processes and threads at one time")] = None
    files: Annotated[int | None, msgspec.Meta(description="Files in each writable folder")] = None
    disk: Annotated[str | int | None, msgspec.Meta(description='Bytes in each writable folder, such as "1GiB"')] = None

    def __post_init__(self) -> None:
        refuse([*self._size_mistakes("memory", _MEMORY_MIN), *self._size_mistakes("disk", 0), *self._count_mistakes()])

    def size(self, default: Size) -> Size:
        """The limits asked for, over ``default``."""
        if self == _AS_DEFAULT:
            return default
        return Size(
            memory_bytes=default.memory_bytes if self.memory is None else parse_size(self.memory),
            cpus=default.cpus if self.cpus is None else self.cpus,
            processes=default.processes if self.processes is None else self.processes,
            files=default.files if self.files is None else self.files,
            disk_bytes=default.disk_bytes if self.disk is None else parse_size(self.disk),
            open_files=default.open_files,
        )

    def _size_mistakes(self, name: str, least: int) -> Iterator[str]:
        value = getattr(self, name)
        if value is None:
            return
        try:
            size = parse_size(value, field=name)
        except InvalidSpec as error:
            yield error.message
            return
        if not least <= size <= _MEMORY_MAX:
            yield f'{name}: "{printable(str(value))}" is out of range; it is between {format_size(least)} and 64 TiB'

    def _count_mistakes(self) -> Iterator[str]:
        if self.cpus is not None and not (math.isfinite(self.cpus) and 0.01 <= self.cpus <= 4096):
            yield f"cpus: {self.cpus} is out of range; it is between 0.01 and 4096"
        for name in ("processes", "files"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _COUNT_MAX:
                yield f"{name}: {value} is out of range; it is between 1 and {_COUNT_MAX}"


_AS_DEFAULT: Final = Resources()


class CoreFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run, where, and with what."""

    command: Annotated[tuple[str, ...], msgspec.Meta(description="Program and arguments; no shell unless you name one")]
    image: Annotated[
        str,
        msgspec.Meta(
            description='"" for the worker\'s own read-only root, an OCI image such as "registry:5000/name:tag" or '
            '"name@sha256:…", or "root:/dir" for a prepared directory'
        ),
    ] = ""
    image_secret: Annotated[
        str,
        msgspec.Meta(
            description="Name of a secret of the tenant for the image's registry: user:password or a docker config.json"
        ),
    ] = ""
    inputs: Annotated[tuple[Input, ...], msgspec.Meta(description="Files and directories to put in place first")] = ()
    resources: Resources = Resources()
    network: Annotated[bool, msgspec.Meta(description="Ask for network; the worker's policy must allow it")] = False
    cwd: Annotated[str, msgspec.Meta(description="Where to start; relative to the working directory /work")] = ""

    def __post_init__(self) -> None:
        mistakes = [*command_mistakes(self.command), *_image_mistakes(self.image), *_input_mistakes(self.inputs)]
        if problem := directory_mistake(self.cwd):
            mistakes.append(f"cwd: {problem}")
        if self.image_secret and not self.reference:
            mistakes.append("image_secret: is for the registry of an OCI image, and none is named")
        refuse(mistakes)

    @property
    def root(self) -> str:
        """The directory that ``root:`` names, or ""."""
        return self.image.removeprefix(_ROOT) if self.image.startswith(_ROOT) else ""

    @property
    def reference(self) -> str:
        """The OCI image, or ""."""
        return "" if self.image.startswith(_ROOT) else self.image


def digest_mistakes(text: str, field: str) -> Iterator[str]:
    """Why ``text`` is no digest."""
    try:
        Digest.parse(text)
    except InvalidSpec as error:
        yield f"{field}: {error.message.removeprefix('digest: ')}"


def command_mistakes(command: tuple[str, ...]) -> Iterator[str]:
    """Why Linux could not run ``command``."""
    if not command:
        yield "command: is empty; the first element is the program"
        return
    if not command[0]:
        yield "command[0]: the program's name is empty"
    total = 0
    for index, argument in enumerate(command):
        if "\x00" in argument:
            yield f"command[{index}]: holds a NUL byte"
        size = len(argument) if argument.isascii() else len(argument.encode(errors="replace"))
        total += size + 1
        if size > ARGUMENT_BYTES_MAX:
            yield f"command[{index}]: is {size} bytes long; Linux takes at most {ARGUMENT_BYTES_MAX}"
    if total > COMMAND_BYTES_MAX:
        yield f"command: is {total} bytes long; at most {COMMAND_BYTES_MAX} fit; put long lists into an input file"


def _image_mistakes(image: str) -> Iterator[str]:
    if not image:
        return
    if not image.startswith(_ROOT):
        try:
            Reference.parse(image)
        except InvalidSpec as error:
            yield error.message
        return
    path = image.removeprefix(_ROOT)
    if not path.startswith("/") or relative_path_mistake(path[1:]):
        yield f'image: "{printable(image)}" needs the absolute path of a directory, such as "root:/srv/roots/debian"'


def _input_mistakes(inputs: tuple[Input, ...]) -> Iterator[str]:
    if len(inputs) > INPUTS_MAX:
        yield f"inputs: there are {len(inputs)}; at most {INPUTS_MAX} are allowed; upload a tree instead"
    seen: dict[str, int] = {}
    for index, each in enumerate(inputs):
        if each.path in seen:
            yield f'inputs[{index}].path: "{printable(each.path)}" is also the path of inputs[{seen[each.path]}]'
        seen.setdefault(each.path, index)
    files = {each.path for each in inputs if each.digest}
    for index, each in enumerate(inputs):
        parent = each.path.rpartition("/")[0]
        while parent:
            if parent in files:
                yield f'inputs[{index}].path: "{printable(each.path)}" lies below the file "{printable(parent)}"'
                break
            parent = parent.rpartition("/")[0]
