"""Builders of actions for tests: a command and its inputs as plain values, stored as a client would store them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from corral.actions.adapters.messages import write_action, write_command
from corral.actions.building import TreeBuilder
from corral.actions.model import Action, Command
from corral.blobs.content import pieces_of
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobWriter
from corral.kernel.digest import Digest, HashFunction

_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link among inputs."""

    target: str


@dataclass(frozen=True, slots=True)
class Program:
    """An executable file among inputs."""

    content: bytes


Inputs = Mapping[str, bytes | Program | Link | None]
"""By path: a file's content, a program, a link, or None for an empty directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltAction:
    """An action, and every blob that it needs."""

    digest: Digest
    action: Action
    blobs: Mapping[Digest, bytes]
    inputs: Mapping[str, Digest] = field(default_factory=dict)

    async def store(self, blobs: BlobWriter, tenant: str) -> Digest:
        """Store all of it; its digest."""
        await run_all(
            (blobs.write(tenant, digest, pieces_of(data)) for digest, data in self.blobs.items()), at_once=_AT_ONCE
        )
        return self.digest

    def without(self, *digests: Digest) -> "BuiltAction":
        """The same, but these blobs will not be stored."""
        return replace(self, blobs={digest: data for digest, data in self.blobs.items() if digest not in digests})


def build_action(
    command: Command,
    inputs: Inputs | None = None,
    *,
    function: HashFunction = HashFunction.SHA256,
    timeout_s: float | None = None,
    do_not_cache: bool = False,
    salt: bytes = b"",
    platform: tuple[tuple[str, str], ...] = (),
) -> BuiltAction:
    """An action of ``command`` on ``inputs``."""
    tree = TreeBuilder(function)
    blobs: dict[Digest, bytes] = {}
    named: dict[str, Digest] = {}
    for path, node in (inputs or {}).items():
        if node is None:
            tree.add_directory(path)
        elif isinstance(node, Link):
            tree.add_symlink(path, node.target)
        else:
            content = node.content if isinstance(node, Program) else node
            digest = named[path] = Digest.of(content, function)
            blobs[digest] = content
            tree.add_file(path, digest, executable=isinstance(node, Program))
    built = tree.build()
    blobs |= built.blobs
    encoded = write_command(command)
    command_digest = Digest.of(encoded, function)
    blobs[command_digest] = encoded
    action = Action(
        command=command_digest,
        input_root=built.root,
        timeout_s=timeout_s,
        do_not_cache=do_not_cache,
        salt=salt,
        platform=platform,
    )
    data = write_action(action)
    digest = Digest.of(data, function)
    blobs[digest] = data
    return BuiltAction(digest=digest, action=action, blobs=blobs, inputs=named)


def shell(script: str, *outputs: str, **more: object) -> Command:
    """A command that runs ``script`` and leaves ``outputs``."""
    return replace_struct(Command(arguments=("/bin/sh", "-c", script), output_paths=outputs), **more)


def replace_struct(command: Command, **changes: object) -> Command:
    """The command with other fields."""
    fields = {name: getattr(command, name) for name in command.__struct_fields__}
    return Command(**{**fields, **changes})
