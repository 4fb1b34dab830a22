"""From paths to encoded directories: for what a command left, and for what a client wants to have as inputs. Pure."""

from dataclasses import dataclass

from corral.actions.adapters.messages import write_directory
from corral.actions.model import ActionDirectory, ActionFile, ActionSubdirectory, ActionSymlink
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec


@dataclass(frozen=True, slots=True)
class BuiltTree:
    """A tree: its ``top``, every directory's bytes by digest (``root`` is the top's), and the directories below the
    top, each once, a directory before what is in it."""

    root: Digest
    top: ActionDirectory
    below: tuple[ActionDirectory, ...]
    blobs: dict[Digest, bytes]


class TreeBuilder:
    """Collects paths, in any order; parents are made. ``/`` separates, "" is the top."""

    def __init__(self, function: HashFunction) -> None:
        self._function = function
        self._files: dict[str, list[ActionFile]] = {"": []}
        self._links: dict[str, list[ActionSymlink]] = {"": []}
        self._below: dict[str, list[str]] = {"": []}
        self._leaves: set[str] = set()

    def add_file(self, path: str, digest: Digest, *, executable: bool = False) -> None:
        """Raises InvalidSpec when something else has this path."""
        parent, name = self._leaf(path)
        self._files[parent].append(ActionFile(name, digest, executable))

    def add_symlink(self, path: str, target: str) -> None:
        """Raises InvalidSpec when something else has this path."""
        parent, name = self._leaf(path)
        self._links[parent].append(ActionSymlink(name, target))

    def add_directory(self, path: str) -> None:
        """One that is there already is no error, a file of its name is. Raises InvalidSpec."""
        if path in self._files:
            return
        parent, name = self._leaf(path)
        self._leaves.discard(path)
        self._below[parent].append(name)
        self._files[path], self._links[path], self._below[path] = [], [], []

    def build(self) -> BuiltTree:
        """The directories, encoded."""
        made: dict[str, Digest] = {}
        blobs: dict[Digest, bytes] = {}
        distinct: dict[Digest, ActionDirectory] = {}
        top = ActionDirectory()
        for path in sorted(self._files, key=_deepest_first):
            prefix = f"{path}/" if path else ""
            directory = ActionDirectory(
                tuple(sorted(self._files[path], key=_name)),
                tuple(ActionSubdirectory(name, made[prefix + name]) for name in sorted(self._below[path])),
                tuple(sorted(self._links[path], key=_name)),
            )
            data = write_directory(directory)
            digest = made[path] = Digest.of(data, self._function)
            blobs[digest] = data
            if path:
                distinct.setdefault(digest, directory)  # where it lies deepest: below everything that names it
            else:
                top = directory
        return BuiltTree(made[""], top, tuple(reversed(distinct.values())), blobs)

    def _leaf(self, path: str) -> tuple[str, str]:
        parent, _, name = path.rpartition("/")
        if not name or path in self._leaves or path in self._files:
            raise InvalidSpec(f'"{path[:100]}" is there twice, or is no path of a tree', field="path")
        self.add_directory(parent)
        self._leaves.add(path)
        return parent, name


def _deepest_first(path: str) -> tuple[int, str]:
    return (-path.count("/") if path else 1, path)


def _name(node: ActionFile | ActionSymlink) -> str:
    return node.name
