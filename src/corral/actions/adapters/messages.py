"""Between the bytes of Bazel's remote execution API and our values; pure.

What names an action is the digest of such bytes, so they are never re-encoded where a client's digest is at stake.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from corral.actions.machine import check_directory
from corral.actions.model import (
    Action,
    ActionDirectory,
    ActionFile,
    ActionResult,
    ActionSubdirectory,
    ActionSymlink,
    ActionTimes,
    Command,
    OutputDirectory,
    OutputFile,
    OutputStyle,
    OutputSymlink,
)
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec
from corral.wire.reapi import remote_execution_pb2 as pb

M = TypeVar("M", bound=Message)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SIZE_MAX: Final = 2**62
_NANOS: Final = 1_000_000_000
_TIMES: Final = {
    "queued_s": "queued_timestamp",
    "worker_start_s": "worker_start_timestamp",
    "worker_completed_s": "worker_completed_timestamp",
    "input_fetch_start_s": "input_fetch_start_timestamp",
    "input_fetch_completed_s": "input_fetch_completed_timestamp",
    "execution_start_s": "execution_start_timestamp",
    "execution_completed_s": "execution_completed_timestamp",
    "output_upload_start_s": "output_upload_start_timestamp",
    "output_upload_completed_s": "output_upload_completed_timestamp",
}


# ---- digests ----


def digest_from(message: pb.Digest, function: HashFunction, field: str = "digest") -> Digest:
    """Raises InvalidSpec when it is none."""
    if not _HASH.fullmatch(message.hash) or not 0 <= message.size_bytes < _SIZE_MAX:
        raise InvalidSpec(
            f'{field}: "{message.hash[:80]}/{message.size_bytes}" is not a digest of {function.name}; '
            "a digest is 64 lower-case hex digits and a size in bytes",
            field=field,
        )
    return Digest(function, message.hash, message.size_bytes)


def digest_to(digest: Digest) -> pb.Digest:
    """Without the function, which travels beside it."""
    return pb.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


# ---- actions ----


def read_action(data: bytes, function: HashFunction) -> Action:
    """An Action; digests in it are of ``function``. Raises InvalidSpec."""
    message = _parsed(pb.Action, data, "Action")
    return Action(
        command=digest_from(message.command_digest, function, "command_digest"),
        input_root=digest_from(message.input_root_digest, function, "input_root_digest"),
        timeout_s=_seconds(message.timeout) if message.HasField("timeout") else None,
        do_not_cache=message.do_not_cache,
        salt=message.salt,
        platform=_properties(message.platform),
    )


def write_action(action: Action) -> bytes:
    """The canonical bytes, whose digest names the action."""
    message = pb.Action(
        command_digest=digest_to(action.command),
        input_root_digest=digest_to(action.input_root),
        do_not_cache=action.do_not_cache,
        salt=action.salt,
    )
    if action.timeout_s is not None:
        nanos = round(action.timeout_s * _NANOS)
        message.timeout.CopyFrom(Duration(seconds=nanos // _NANOS, nanos=nanos % _NANOS))
    if action.platform:
        message.platform.CopyFrom(_platform(action.platform))
    return message.SerializeToString(deterministic=True)


def read_command(data: bytes) -> Command:
    """A Command of either style. Raises InvalidSpec."""
    message = _parsed(pb.Command, data, "Command")
    old = bool(message.output_files or message.output_directories) and not message.output_paths
    return Command(
        arguments=tuple(message.arguments),
        environment=tuple((each.name, each.value) for each in message.environment_variables),
        style=OutputStyle.FILES if old else OutputStyle.PATHS,
        output_files=tuple(message.output_files) if old else (),
        output_directories=tuple(message.output_directories) if old else (),
        output_paths=tuple(message.output_paths),
        working_directory=message.working_directory,
        platform=_properties(message.platform),
        root_directories=message.output_directory_format != pb.Command.TREE_ONLY,
    )


def write_command(command: Command) -> bytes:
    """The canonical bytes: variables, outputs and properties are sorted."""
    message = pb.Command(
        arguments=command.arguments,
        environment_variables=[
            pb.Command.EnvironmentVariable(name=name, value=value) for name, value in sorted(command.environment)
        ],
        output_files=sorted(command.output_files),
        output_directories=sorted(command.output_directories),
        output_paths=sorted(command.output_paths),
        working_directory=command.working_directory,
    )
    if command.platform:
        message.platform.CopyFrom(_platform(command.platform))
    if command.root_directories:
        message.output_directory_format = pb.Command.TREE_AND_DIRECTORY
    return message.SerializeToString(deterministic=True)


# ---- directories ----


def read_directory(data: bytes, function: HashFunction) -> ActionDirectory:
    """A Directory whose names are fit for one. Raises InvalidSpec."""
    return directory_from(_parsed(pb.Directory, data, "Directory"), function)


def directory_from(message: pb.Directory, function: HashFunction) -> ActionDirectory:
    """Raises InvalidSpec for names with ``/``, ``..``, empty or doubled names, and for digests that are none."""
    directory = ActionDirectory(
        tuple([ActionFile(f.name, digest_from(f.digest, function, f.name), f.is_executable) for f in message.files]),
        tuple([ActionSubdirectory(d.name, digest_from(d.digest, function, d.name)) for d in message.directories]),
        tuple([ActionSymlink(link.name, link.target) for link in message.symlinks]),
    )
    check_directory(directory)
    return directory


def directory_to(directory: ActionDirectory) -> pb.Directory:
    """In canonical order."""
    return pb.Directory(
        files=[
            pb.FileNode(name=each.name, digest=digest_to(each.digest), is_executable=each.executable)
            for each in sorted(directory.files, key=_by_name)
        ],
        directories=[
            pb.DirectoryNode(name=each.name, digest=digest_to(each.digest))
            for each in sorted(directory.directories, key=_by_name)
        ],
        symlinks=[
            pb.SymlinkNode(name=each.name, target=each.target) for each in sorted(directory.symlinks, key=_by_name)
        ],
    )


def write_directory(directory: ActionDirectory) -> bytes:
    """The canonical bytes, whose digest names the directory."""
    return directory_to(directory).SerializeToString(deterministic=True)


def write_tree(root: ActionDirectory, children: Iterable[ActionDirectory]) -> bytes:
    """A whole directory in one blob."""
    message = pb.Tree(root=directory_to(root), children=[directory_to(child) for child in children])
    return message.SerializeToString(deterministic=True)


def read_tree(data: bytes, function: HashFunction) -> tuple[ActionDirectory, ...]:
    """All directories of a Tree, the root first. Raises InvalidSpec."""
    message = _parsed(pb.Tree, data, "Tree")
    return tuple(directory_from(each, function) for each in (message.root, *message.children))


# ---- results ----


def read_result(data: bytes, function: HashFunction) -> ActionResult:
    """An ActionResult. Raises InvalidSpec."""
    return result_from(_parsed(pb.ActionResult, data, "ActionResult"), function)


def result_from(message: pb.ActionResult, function: HashFunction) -> ActionResult:
    """Raises InvalidSpec for digests that are none."""
    metadata = message.execution_metadata
    return ActionResult(
        exit_code=message.exit_code,
        files=tuple(
            OutputFile(each.path, digest_from(each.digest, function, each.path), each.is_executable)
            for each in message.output_files
        ),
        directories=tuple(
            OutputDirectory(
                each.path,
                digest_from(each.tree_digest, function, each.path),
                _optional(each, "root_directory_digest", function),
            )
            for each in message.output_directories
        ),
        symlinks=_symlinks(message.output_symlinks),
        file_symlinks=_symlinks(message.output_file_symlinks),
        directory_symlinks=_symlinks(message.output_directory_symlinks),
        stdout=message.stdout_raw,
        stderr=message.stderr_raw,
        stdout_digest=_optional(message, "stdout_digest", function),
        stderr_digest=_optional(message, "stderr_digest", function),
        worker=metadata.worker,
        times=_times(metadata),
    )


def result_to(result: ActionResult) -> pb.ActionResult:
    """Times that are 0 are left out."""
    metadata = pb.ExecutedActionMetadata(worker=result.worker)
    for ours, theirs in _TIMES.items():
        if instant_s := getattr(result.times, ours):
            getattr(metadata, theirs).CopyFrom(_timestamp(instant_s))
    return pb.ActionResult(
        exit_code=result.exit_code,
        output_files=[
            pb.OutputFile(path=each.path, digest=digest_to(each.digest), is_executable=each.executable)
            for each in result.files
        ],
        output_directories=[
            pb.OutputDirectory(
                path=each.path,
                tree_digest=digest_to(each.tree),
                is_topologically_sorted=True,
                root_directory_digest=None if each.root is None else digest_to(each.root),
            )
            for each in result.directories
        ],
        output_symlinks=_links(result.symlinks),
        output_file_symlinks=_links(result.file_symlinks),
        output_directory_symlinks=_links(result.directory_symlinks),
        stdout_raw=result.stdout,
        stderr_raw=result.stderr,
        stdout_digest=None if result.stdout_digest is None else digest_to(result.stdout_digest),
        stderr_digest=None if result.stderr_digest is None else digest_to(result.stderr_digest),
        execution_metadata=metadata,
    )


def write_result(result: ActionResult) -> bytes:
    """As the cache keeps it."""
    return result_to(result).SerializeToString(deterministic=True)


def blobs_of_result(result: ActionResult) -> list[Digest]:
    """What a result names itself; what its trees name comes beside (:func:`blobs_of_tree`)."""
    found = [each.digest for each in result.files]
    found += [each.tree for each in result.directories]
    found += [each.root for each in result.directories if each.root is not None]
    found += [each for each in (result.stdout_digest, result.stderr_digest) if each is not None]
    return found


def blobs_of_tree(directories: Sequence[ActionDirectory], *, as_blobs: bool) -> list[Digest]:
    """The files of a tree; with ``as_blobs`` its sub-directories too, which then are blobs of their own."""
    found = [each.digest for directory in directories for each in directory.files]
    if as_blobs:
        found += [each.digest for directory in directories for each in directory.directories]
    return found


# ---- parts ----


def _parsed(kind: type[M], data: bytes, name: str) -> M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidSpec(f"the blob is not an encoded {name}", field=name.lower()) from error
    return message


def _by_name(node: ActionFile | ActionSubdirectory | ActionSymlink) -> str:
    return node.name


def _properties(platform: pb.Platform) -> tuple[tuple[str, str], ...]:
    return tuple((each.name, each.value) for each in platform.properties)


def _platform(properties: Iterable[tuple[str, str]]) -> pb.Platform:
    return pb.Platform(properties=[pb.Platform.Property(name=name, value=value) for name, value in sorted(properties)])


def _optional(message: Message, field: str, function: HashFunction) -> Digest | None:
    if not message.HasField(field) or not getattr(message, field).hash:
        return None
    return digest_from(getattr(message, field), function, field)


def _symlinks(messages: Iterable[pb.OutputSymlink]) -> tuple[OutputSymlink, ...]:
    return tuple(OutputSymlink(each.path, each.target) for each in messages)


def _links(symlinks: Iterable[OutputSymlink]) -> list[pb.OutputSymlink]:
    return [pb.OutputSymlink(path=each.path, target=each.target) for each in symlinks]


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / _NANOS


def _times(metadata: pb.ExecutedActionMetadata) -> ActionTimes:
    told = {field.name for field, _ in metadata.ListFields()}
    return ActionTimes(
        **{ours: _instant(getattr(metadata, theirs)) for ours, theirs in _TIMES.items() if theirs in told}
    )


def _instant(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / _NANOS


def _timestamp(instant_s: float) -> Timestamp:
    micros = round(instant_s * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)
