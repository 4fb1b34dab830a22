"""Inputs laid below a writable layer of the sandbox's own, instead of being copied into it: milliseconds at any size.

For runtimes whose sandboxes are processes of this kernel. A small tree is copied all the same: that is one message.
Whatever goes wrong with a layer, the tree is copied.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

import structlog

from corral.actions.adapters.stage_helper import Inside, StageHelper, inside_of
from corral.actions.fetching import KnownTree
from corral.actions.inputs import CopiedInputs, CopiedRoot, wanted_files
from corral.actions.trees import Layer, SharedTrees
from corral.blobs.content import pieces_of
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.model import EntryKind, TreeEntry
from corral.sandboxes.runtimes.host_root import GID, UID
from corral.sandboxes.sandbox import Sandbox

RUNTIMES: Final = frozenset(("bubblewrap", "oci"))
_BUILD: Final = "build"
_COPIED_FILES: Final = 16
_COPIED_BYTES: Final = 128 * 1024
_UNMOUNT_WITHIN_S: Final = 15.0
_FAILURES_MAX: Final = 3

_log = structlog.get_logger(__name__)


class OverlaidInputs:
    """See ``ports.InputRoots``; over the one that copies."""

    def __init__(self, copied: CopiedInputs, trees: SharedTrees, helper: StageHelper) -> None:
        self._copied = copied
        self.trees = trees
        self._helper = helper
        self._inside: WeakKeyDictionary[Sandbox, Inside] = WeakKeyDictionary()
        self._owners: dict[tuple[str, str], int] = {}
        self._refused = os.geteuid() != 0
        self._failures = 0
        self.overlaid = 0

    async def fetch(self, tenant: str, root: Digest, runtime: str) -> "OverlaidRoot":
        known = await self._copied.directories.tree(tenant, root)
        owner = self._owners.get((tenant, runtime))
        held: Sequence[str] = ()
        if self._small(known) or owner is None or not self.trees.holds(tenant, owner, known):
            held = await self._copied.files.hold(tenant, wanted_files(known))
            return OverlaidRoot(self, CopiedRoot(self._copied.files, tenant, known, held), tenant, runtime, ())
        layers = await self.trees.hold(tenant, owner, known)
        return OverlaidRoot(self, CopiedRoot(self._copied.files, tenant, known, held), tenant, runtime, layers)

    def may_overlay(self, known: KnownTree, runtime: str) -> bool:
        """Whether a layer is worth trying."""
        return not self._refused and runtime in RUNTIMES and not self._small(known)

    async def complete(self, tenant: str, root: CopiedRoot) -> None:
        """Have the files too, for a tree that was only held as layers."""
        root.hold_also(await self._copied.files.hold(tenant, wanted_files(root.known)))

    async def lay(self, sandbox: Sandbox, tenant: str, runtime: str, known: KnownTree, place: str) -> Sequence[Layer]:
        """Mount the tree; what to give to ``take_away``. Raises SandboxFailed when that cannot be done."""
        inside = self._inside.get(sandbox)
        if inside is None:
            inside = inside_of(sandbox.host_pid) if sandbox.host_pid else None
            if inside is None:
                raise SandboxFailed("process 1 of the sandbox was not found")
            self._inside[sandbox] = inside
        self._owners[tenant, runtime] = inside.owner
        try:
            layers = await self.trees.hold(tenant, inside.owner, known)
        except OSError as error:
            raise SandboxFailed(f"the inputs cannot be laid out: {error.strerror}") from error
        try:
            await self._helper.mount(inside, place, layers, uid=UID, gid=GID)
        except BaseException:
            self.trees.release_nowait(layers)
            raise
        self.overlaid += 1
        self._failures = 0
        return layers

    async def take_away(self, sandbox: Sandbox, place: str, layers: Sequence[Layer]) -> None:
        """Unmount. One that stays is found by the sandbox's reset, which then destroys it."""
        try:
            if sandbox.lost is None:
                await self._helper.unmount(self._inside[sandbox], place, layers)
        except SandboxFailed as error:
            _log.warning("inputs stay mounted", sandbox=sandbox.spec.id, reason=str(error))
        finally:
            self.trees.release_nowait(layers)

    def give_back(self, layers: Sequence[Layer]) -> None:
        """Layers that were held for a fetch."""
        self.trees.release_nowait(layers)

    def failed(self, reason: str) -> None:
        """A layer could not be laid. After some in a row: this machine does not let us, copy from now on."""
        self._failures += 1
        if self._failures >= _FAILURES_MAX and not self._refused:
            self._refused = True
            _log.warning("inputs are copied into sandboxes from now on", reason=reason)

    def close(self) -> None:
        """End the helper."""
        self._helper.close()

    def _small(self, known: KnownTree) -> bool:
        return known.totals.files <= _COPIED_FILES and known.totals.total_bytes <= _COPIED_BYTES


class OverlaidRoot:
    """See ``ports.InputRoot``."""

    def __init__(
        self, inputs: OverlaidInputs, copied: CopiedRoot, tenant: str, runtime: str, layers: Sequence[Layer]
    ) -> None:
        self._inputs = inputs
        self._copied = copied
        self._tenant = tenant
        self._runtime = runtime
        self._layers = layers
        self._only_layers = bool(layers)

    @property
    def input_files(self) -> int:
        return self._copied.input_files

    @property
    def total_bytes(self) -> int:
        return self._copied.total_bytes

    @asynccontextmanager
    async def staged(self, sandbox: Sandbox, directory: str, parents: Sequence[str]) -> AsyncIterator[None]:
        known, place = self._copied.known, directory.removesuffix(f"/{_BUILD}")
        layers: Sequence[Layer] | None = None
        if self._inputs.may_overlay(known, self._runtime):
            try:
                layers = await self._inputs.lay(sandbox, self._tenant, self._runtime, known, place)
            except SandboxFailed as error:
                if sandbox.lost is not None:
                    raise
                self._inputs.failed(error.message)
        if layers is None:
            if self._only_layers:
                await self._inputs.complete(self._tenant, self._copied)
            async with self._copied.staged(sandbox, directory, parents):
                yield
            return
        try:
            if parents:
                await _make(sandbox, directory, parents)
            yield
        finally:
            await finish(self._inputs.take_away(sandbox, place, layers), within_s=_UNMOUNT_WITHIN_S)

    def release_nowait(self) -> None:
        layers, self._layers = self._layers, ()
        self._inputs.give_back(layers)
        self._copied.release_nowait()


async def _make(sandbox: Sandbox, directory: str, parents: Sequence[str]) -> None:
    async def entries() -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
        for path in parents:
            yield TreeEntry(path=path, kind=EntryKind.DIRECTORY), pieces_of(b"")

    try:
        await sandbox.write_tree(directory, entries())
    except InvalidSpec as error:
        raise InvalidSpec(f"an output's directory cannot be made: {error.message}", field="output_paths") from error
