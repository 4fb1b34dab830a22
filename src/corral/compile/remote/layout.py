"""A compile, laid out as an action: its input root, its command, and where things lie on the worker.

The project's root lies at ``PLACE`` in every sandbox. Names of places move there; texts (macros, targets of rules)
stay. What the compiler would write of ``PLACE`` into the object is mapped back to what a compile here writes, so that
the object is the same; where nothing can get in, nothing is mapped, and all checkouts share one action.
"""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import blake3

from corral.actions.adapters.messages import write_action, write_command, write_directory
from corral.actions.model import Action, ActionDirectory, ActionFile, ActionSubdirectory, Command
from corral.compile import key
from corral.compile.closure import UNPREPROCESSED
from corral.compile.files import FileEntry
from corral.compile.model import Argument, Category, Family, IncludeSet, Invocation, Language, Vendor
from corral.compile.paths import absolute
from corral.compile.ports import CompileRequest
from corral.compile.remote.model import OBJECT, RULES, SOURCE, Shipment
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec

PLACE: Final = "/work/build"
"""``actions.runner.ROOT``; a test holds them together."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLACES: Final = frozenset({Category.INCLUDE, Category.FORCED_INCLUDE, Category.INPUT, Category.LINKER})
_LISTS: Final = frozenset(
    {"CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "OBJC_INCLUDE_PATH", "OBJCPLUS_INCLUDE_PATH"}
)
_MAPS: Final = ("-ffile-prefix-map=", "-fdebug-prefix-map=", "-fmacro-prefix-map=")
_OF_SYSTEMS: Final = ("/usr/", "/lib/", "/lib64/", "/opt/")
_UNSENT: Final = frozenset({"PWD", "GCC_EXEC_PREFIX", "COMPILER_PATH"})


class CannotShip(InvalidSpec):
    """This compile cannot run elsewhere; the sentence says why. It is compiled here."""


def lay_out(
    request: CompileRequest,
    include_set: IncludeSet,
    *,
    image: str,
    seen: Callable[[str], FileEntry | None],
    same_file: Callable[[str, str], bool],
) -> Shipment:
    """The action for a compile from its files, as they were ``seen`` last. Raises CannotShip."""
    root = _checked_root(request)
    tree = _Tree()
    files: dict[Digest, str] = {}
    tools: list[tuple[str, str]] = []
    for path, content_hash in include_set.files:
        if path.startswith("/"):
            tools.append((path, content_hash))
            continue
        place = posixpath.normpath(path)
        if place.startswith(".."):
            raise CannotShip(f"{path} lies outside of the project")
        if ".." in path and not same_file(f"{root}/{path}", f"{root}/{place}"):
            raise CannotShip(f"{path} leads through a symbolic link")
        entry = seen(absolute(path, root=root))
        if entry is None or entry.hash != content_hash:
            raise CannotShip(f"{path} changes meanwhile")
        digest = Digest(HashFunction.BLAKE3, content_hash, entry.size_bytes)
        tree.add(place, digest)
        files[digest] = f"{root}/{place}"
        for parent in _walked(path):
            tree.directory(parent)
    for directory in _searched(request.invocation, request.inputs.subdirectory, root):
        tree.directory(directory)
    return _shipment(request, tree, _arguments(request), files, {}, tools, image)


def lay_out_preprocessed(request: CompileRequest, preprocessed: bytes, *, image: str) -> Shipment:
    """The action for a compile of what the preprocessor made. Raises CannotShip."""
    _checked_root(request)
    digest = Digest.of(preprocessed)
    tree = _Tree()
    tree.add(posixpath.join(_below(request), SOURCE), digest)
    return _shipment(request, tree, _preprocessed_arguments(request), {}, {digest: preprocessed}, [], image)


def _checked_root(request: CompileRequest) -> str:
    if not request.root:
        raise CannotShip("remote compiles need a project: put a file .corral into its root")
    if request.invocation.family is not Family.GNU:
        raise CannotShip("compilers with the command line of cl run here only")
    if key.records_command_line(request.invocation, request.identity):
        raise CannotShip("the object holds its command line, which is another one on a worker")
    assembly = request.cacheable.language in (Language.ASSEMBLER, Language.ASSEMBLER_CPP)
    if assembly and request.inputs.directory and request.identity.vendor is not Vendor.GCC:
        raise CannotShip("clang names the directory in the debug information of assembly, and maps do not reach it")
    return request.root


def _shipment(
    request: CompileRequest,
    tree: "_Tree",
    arguments: Sequence[str],
    files: dict[Digest, str],
    contents: dict[Digest, bytes],
    tools: Sequence[tuple[str, str]],
    image: str,
) -> Shipment:
    below = _below(request)
    tree.directory(below)
    directories = tree.encoded()
    foreign = [path for path, _ in tools if not path.startswith(_OF_SYSTEMS)]
    if image and foreign:
        raise CannotShip(f"{foreign[0]} is neither of the project nor of the image")
    compiler = request.argv[0] if not image else posixpath.basename(request.argv[0])
    rules = SOURCE not in arguments and (request.invocation.dependency_file is not None or _tells(request))
    command = Command(
        arguments=(compiler, *arguments),
        environment=tuple(_environment(request)),
        output_paths=(OBJECT, RULES) if rules else (OBJECT,),
        working_directory="" if below == "." else below,
        platform=(("image", image),) if image else (),
    )
    encoded = write_command(command)
    tool_files = () if image else tuple(sorted(tools))
    salt = blake3.blake3(b"corral compile 1")
    salt.update((image or request.identity.digest).encode())
    for path, content_hash in tool_files:
        salt.update(f"\0{path}\0{content_hash}".encode("utf-8", "surrogateescape"))
    action = write_action(Action(command=Digest.of(encoded), input_root=Digest.of(directories[-1]), salt=salt.digest()))
    return Shipment(
        action=Digest.of(action),
        messages=(action, encoded, *directories),
        files=files,
        contents=contents,
        compiler="" if image else request.argv[0],
        identity=request.identity.digest,
        tool_files=tool_files,
    )


# ---- the command ----


def _arguments(request: CompileRequest) -> list[str]:
    """argv without the compiler, for the worker."""
    root, rules = request.root, request.invocation.dependency_file
    words: list[str] = []
    for argument in request.invocation.arguments:
        if argument.flag in ("-o", "-MF"):
            continue
        words += _moved(argument, root)
    if _tells(request):
        words += ["-MD", "-MF", RULES]
    elif rules is not None and any(each.flag in ("-MD", "-MMD") for each in request.invocation.arguments):
        words += ["-MF", RULES]
        if not rules.targets:
            words += ["-MQ", request.cacheable.output]
    return [*reproducibility_flags(request), *words, "-o", OBJECT]


def _tells(request: CompileRequest) -> bool:
    """Whether the compiler can be asked what it read, when the user did not. It notes nothing of that in the object."""
    asked = any(each.category is Category.DEPENDENCIES for each in request.invocation.arguments)
    return not asked and request.invocation.dependency_file is None and request.cacheable.language not in UNPREPROCESSED


_KEPT: Final = frozenset(
    {
        Category.MODE,
        Category.STANDARD,
        Category.OPTIMIZE,
        Category.DEBUG,
        Category.WARNING,
        Category.FEATURE,
        Category.MACHINE,
        Category.PATH_MAP,
        Category.OTHER,
        Category.UNKNOWN,
    }
)


def _preprocessed_arguments(request: CompileRequest) -> list[str]:
    """argv without the compiler: no macros, no headers; -Werror is left out, since warnings differ in two steps."""
    words: list[str] = []
    for argument in request.invocation.arguments:
        error = argument.category is Category.WARNING and (argument.value or "").startswith("error")
        assembler = argument.flag in ("-Wa,", "-Xassembler")
        if (argument.category in _KEPT and not error) or assembler:
            words += _moved(argument, request.root)
    language = PREPROCESSED_LANGUAGES.get(request.cacheable.language.value)
    if language is None:
        raise CannotShip(f"{request.cacheable.language.value} is not preprocessed")
    return [*reproducibility_flags(request), *words, "-x", language, SOURCE, "-o", OBJECT]


PREPROCESSED_LANGUAGES: Final = {
    "c": "cpp-output",
    "c++": "c++-cpp-output",
    "objective-c": "objective-c-cpp-output",
    "objective-c++": "objective-c++-cpp-output",
    "assembler-with-cpp": "assembler",
    "cpp-output": "cpp-output",
    "c++-cpp-output": "c++-cpp-output",
    "assembler": "assembler",
}


def reproducibility_flags(request: CompileRequest) -> list[str]:
    """What makes the object the same as one that is compiled here, whatever the sandbox is called. They come first:
    the last map that fits is the one that counts, and the user's own come later.
    """
    root = request.root
    named = any(root in word for each in request.invocation.arguments for word in each.words)
    if not (request.inputs.directory or named):
        return []
    if request.invocation.family is Family.MSVC:
        return [f"/d1trimfile:{PLACE}", f"/PDBSourcePath:{PLACE}"]
    return [f"-ffile-prefix-map={PLACE}={_mapped(root, request.invocation)}"]


def _mapped(root: str, invocation: Invocation) -> str:
    """What the user's own maps make of the root: a map of a directory above it would not fit on the worker."""
    for argument in reversed(invocation.arguments):
        if argument.flag in _MAPS:
            old, _, new = (argument.value or "").partition("=")
            if root.startswith(old):
                return new + root[len(old) :]
    return root


def _moved(argument: Argument, root: str) -> Sequence[str]:
    """The words of an argument, with places inside of the root moved to ``PLACE``."""
    if argument.flag == "-Wp,":
        return ["-Wp," + ",".join(_inner((argument.value or "").split(","), root))]
    if argument.category is Category.PATH_MAP and argument.flag in _MAPS:
        old, equals, new = (argument.value or "").partition("=")
        return [argument.flag + move(old, root) + equals + new]
    if argument.category in _PLACES and argument.value is not None:
        if len(argument.words) == 2:
            return [argument.words[0], move(argument.value, root)]
        name = argument.words[0][: len(argument.words[0]) - len(argument.value)]
        return [name + move(argument.value, root)]
    return argument.words


def _inner(words: Sequence[str], root: str) -> Iterable[str]:
    value_of = ""
    for word in words:
        if value_of:
            yield RULES if value_of in ("-MD", "-MMD", "-MF") else word
            value_of = ""
        else:
            value_of = word if word in ("-MD", "-MMD", "-MF", "-MT", "-MQ") else ""
            yield word[:2] + move(word[2:], root) if word.startswith("-I") else word


def move(path: str, root: str) -> str:
    """A place inside of the root, as it is called on the worker; any other as it is."""
    if path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return PLACE + path[len(root) :]
    return path


def move_back(text: bytes, root: str) -> bytes:
    """Messages and rules of the worker, with the names of here."""
    return text.replace(PLACE.encode(), root.encode("utf-8", "surrogateescape"))


def _environment(request: CompileRequest) -> Iterable[tuple[str, str]]:
    yield "PATH", _PATH
    for name, value in request.environment.items():
        if name in _UNSENT:
            continue
        if name in _LISTS:
            yield name, ":".join(move(each, request.root) for each in value.split(":"))
        else:
            yield name, value


def _below(request: CompileRequest) -> str:
    return posixpath.normpath(request.inputs.subdirectory)


# ---- the input root ----


def _searched(invocation: Invocation, below: str, root: str) -> Iterable[str]:
    """Directories that flags name: they must be there, or -Wmissing-include-dirs would say so."""
    for argument in invocation.arguments:
        if argument.category is Category.INCLUDE and argument.value:
            place = argument.value
            if place.startswith("/"):
                if not (place + "/").startswith(root + "/"):
                    continue
                place = place[len(root) + 1 :] or "."
            else:
                place = f"{below}/{place}"
            yield from _walked(f"{place}/x")


def _walked(path: str) -> Iterable[str]:
    """Every directory that is passed on the way to ``path``, also those that ``..`` leaves again."""
    parts = path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        place = posixpath.normpath("/".join(parts[:count]))
        if not place.startswith("..") and place != ".":
            yield place


class _Tree:
    """Files by their path, to directories by their digest."""

    def __init__(self) -> None:
        self._nodes: dict[str, Digest | _Tree] = {}

    def add(self, path: str, digest: Digest) -> None:
        """A file. Raises CannotShip when a directory is in its place."""
        head, _, last = path.rpartition("/")
        place = self.directory(head)
        if isinstance(place._nodes.get(last), _Tree):
            raise CannotShip(f"{path} is a file and a directory")
        place._nodes[last] = digest

    def directory(self, path: str) -> "_Tree":
        """A directory, with all above it."""
        place = self
        for part in path.split("/"):
            if part in ("", "."):
                continue
            node = place._nodes.setdefault(part, _Tree())
            if not isinstance(node, _Tree):
                raise CannotShip(f"{path} is a file and a directory")
            place = node
        return place

    def encoded(self) -> list[bytes]:
        """All directories as they travel, the root last."""
        found: list[bytes] = []
        self._encode(found)
        return list(dict.fromkeys(found[:-1])) + found[-1:]

    def _encode(self, found: list[bytes]) -> Digest:
        files: list[ActionFile] = []
        directories: list[ActionSubdirectory] = []
        for name, node in sorted(self._nodes.items()):
            if isinstance(node, _Tree):
                directories.append(ActionSubdirectory(name, node._encode(found)))
            else:
                files.append(ActionFile(name, node))
        data = write_directory(ActionDirectory(tuple(files), tuple(directories)))
        found.append(data)
        return Digest.of(data)


def outputs_by_role(paths: Mapping[str, Digest]) -> dict[str, Digest]:
    """The outputs of an action by the roles that a compile gives them."""
    roles = {OBJECT: "object", RULES: "dependencies"}
    return {roles[path]: digest for path, digest in paths.items() if path in roles}
