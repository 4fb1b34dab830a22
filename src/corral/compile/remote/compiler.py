"""Compiles on the fleet: closure, layout, slot, worker, outputs. One retry on another worker, then it is told why."""

import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from corral.actions.adapters.messages import read_result
from corral.actions.model import ActionResult
from corral.compile import closure
from corral.compile.identity import of_image, of_preprocessed
from corral.compile.model import CompilerIdentity, FileTraits, IncludeSet, Outcome
from corral.compile.paths import absolute
from corral.compile.ports import CompileAnswer, CompileRequest, FileHashes
from corral.compile.remote.asking import ask_closure, preprocess
from corral.compile.remote.door import Door, Doors
from corral.compile.remote.foresight import Foresight
from corral.compile.remote.layout import CannotShip, lay_out, lay_out_preprocessed, move_back, outputs_by_role
from corral.compile.remote.model import RemoteConfig, Routes, Shipment, SourceMode, WorkerRoute
from corral.compile.remote.scanning import IncludeScanner, Reachable
from corral.compile.remote.slots import Slots
from corral.fleet.tokens import is_signed
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import CapacityError, CorralError, DependencyError, InvalidSpec, Unauthenticated, WorkerLost
from corral.wire.v1 import door_pb2

_ATTEMPTS: Final = 2
_INLINE_BYTES: Final = 8 * 1024**2
_NOT_THERE: Final = "there is no result without an object"


@dataclass(slots=True)
class RemoteFigures:
    """What was sent and done, since the start. ``repeated``: what was sent first was not all that was read."""

    hits: int = 0
    runs: int = 0
    retries: int = 0
    repeated: int = 0
    uploaded_blobs: int = 0
    uploaded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A compile that can be sent. ``rules``: made here already. ``reachable``: it was not asked what the compile reads,
    so the answer has to confirm it.
    """

    shipment: Shipment
    include_set: IncludeSet
    rules: bytes = b""
    reachable: Reachable | None = None


class _NotSure(Exception):
    """With the files that were sent the compiler may have done something else than it would have done here."""


class FleetCompiler:
    """See ``ports.RemoteCompiler``. ``start`` runs a coroutine beside, until the end of the daemon."""

    def __init__(
        self,
        config: RemoteConfig,
        routes: Routes,
        clock: Clock,
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._config = config
        self._routes = routes
        self._clock = clock
        self._doors = Doors(start)
        self.slots = Slots(routes, clock, start, image=config.image, slots_max=config.slots, idle_s=config.idle_s)
        self.figures = RemoteFigures()
        self._foresight = Foresight()
        self._scanner = IncludeScanner()

    def identity_of(self, program: str, here: CompilerIdentity) -> CompilerIdentity:
        """See ``ports.RemoteCompiler``."""
        config = self._config
        found = of_image(program, here, config.image_digest) if config.image else here
        return of_preprocessed(found) if config.source_mode is SourceMode.PREPROCESSED else found

    async def compile(self, request: CompileRequest, hashes: FileHashes) -> CompileAnswer:
        """See ``ports.RemoteCompiler``."""
        if self._config.source_mode is SourceMode.PREPROCESSED:
            return await self._ask(request, await self._preprocessed(request, hashes), hashes)
        reachable = await self._scanner.reach(request, hashes, now_s=self._clock.now_s())
        if reachable is not None:
            try:
                return await self._ask(
                    request, self._laid_out(request, reachable.include_set, hashes, reachable), hashes
                )
            except _NotSure:
                self.figures.repeated += 1
        include_set = request.include_set or await ask_closure(request, hashes, now_s=self._clock.now_s())
        return await self._ask(request, self._laid_out(request, include_set, hashes), hashes)

    async def close(self) -> None:
        """See ``ports.RemoteCompiler``."""
        await self.slots.close()
        await self._doors.close()
        with suppress(CorralError):
            await self._routes.close()

    async def _preprocessed(self, request: CompileRequest, hashes: FileHashes) -> "_Prepared":
        text, rules, include_set = await preprocess(request, hashes, now_s=self._clock.now_s())
        return _Prepared(lay_out_preprocessed(request, text, image=self._config.image), include_set, rules)

    def _laid_out(
        self,
        request: CompileRequest,
        include_set: IncludeSet,
        hashes: FileHashes,
        reachable: Reachable | None = None,
    ) -> "_Prepared":
        image = self._config.image
        if include_set.moment:
            # An action that is equal tomorrow would be answered with the object of today.
            raise CannotShip("__DATE__ and __TIMESTAMP__ are another one on a worker")
        include_set = msgspec.structs.replace(include_set, bound_to="")
        shipment = lay_out(request, include_set, image=image, seen=hashes.known, same_file=_same_file)
        return _Prepared(shipment, _of_project(include_set) if image else include_set, reachable=reachable)

    async def _ask(self, request: CompileRequest, prepared: "_Prepared", hashes: FileHashes) -> CompileAnswer:
        """One worker, and another one when that cannot answer."""
        attempt = 1
        while True:
            slot = await self.slots.acquire()
            try:
                return await self._attempt(request, prepared, hashes, slot.route)
            except (DependencyError, CapacityError, Unauthenticated) as error:
                slot.failed = True
                if isinstance(error, WorkerLost):
                    self._doors.forget(slot.route)
                if attempt >= _ATTEMPTS:
                    raise _told(error, slot.route) from error
                attempt += 1
                self.figures.retries += 1
            finally:
                self.slots.give_back(slot)

    async def _attempt(
        self, request: CompileRequest, prepared: "_Prepared", hashes: FileHashes, route: WorkerRoute
    ) -> CompileAnswer:
        config, shipment = self._config, prepared.shipment
        door = await self._doors.open(route, tenant=config.tenant, image=config.image, answer_s=config.answer_s)
        try:
            guess = self._foresight.guess(shipment, now_s=self._clock.monotonic_s())
            answer = await door.execute(shipment, inline_bytes=_INLINE_BYTES, along=guess.contents, ask_cache=guess.ask)
            self._foresight.ended(shipment, hit=answer.cached, now_s=self._clock.monotonic_s())
        finally:
            self.figures.uploaded_blobs += door.uploaded_blobs
            self.figures.uploaded_bytes += door.uploaded_bytes
        self._check_signature(shipment.action, answer, route)
        result = read_result(answer.result, HashFunction.BLAKE3)
        if result.exit_code and prepared.reachable is not None:
            raise _NotSure
        if result.exit_code and self.identity_of(request.argv[0], request.identity) is not request.identity:
            raise CannotShip(f"the compiler there says no{_first_line(result.stderr)}")
        files = await self._outputs(request, door, answer, result)
        if prepared.rules:
            files["dependencies"] = prepared.rules
        if result.exit_code == 0 and "object" not in files:
            raise DependencyError(f"worker {route.worker_id}: {answer.message or _NOT_THERE}")
        if answer.message and result.exit_code:
            raise DependencyError(f"worker {route.worker_id}: {answer.message}")  # killed, not the compiler's own end
        include_set = self._read(request, prepared, files)
        bound = closure.bound_to(
            request.root,
            contents=[files.get("object", b"")],
            found=_traits(request, include_set, hashes),
            invocation=request.invocation,
        )
        self.figures.hits += answer.cached
        self.figures.runs += not answer.cached
        stdout = result.stdout or await self._stream(door, answer, result.stdout_digest)
        stderr = result.stderr or await self._stream(door, answer, result.stderr_digest)
        return CompileAnswer(
            outcome=Outcome.REMOTE_HIT if answer.cached else Outcome.REMOTE_RUN,
            exit_code=result.exit_code,
            stdout=move_back(stdout, request.root),
            stderr=move_back(stderr, request.root),
            files=files,
            include_set=msgspec.structs.replace(include_set, bound_to=bound),
            worker=answer.worker or route.worker_id,
            execution=answer.execution,
            duration_s=answer.duration_s,
        )

    def _read(self, request: CompileRequest, prepared: "_Prepared", files: dict[str, bytes]) -> IncludeSet:
        """What the compile has read. Rules that the user did not ask for have served. Raises _NotSure."""
        rules = files.get("dependencies", b"")
        if request.invocation.dependency_file is None:
            files.pop("dependencies", None)
        if prepared.reachable is None:
            return prepared.include_set
        image = bool(self._config.image)
        read = prepared.reachable.confirmed(request, rules, project_only=image)
        if read is None:
            raise _NotSure
        return _of_project(read) if image else read

    async def _outputs(
        self, request: CompileRequest, door: Door, answer: "door_pb2.ExecuteResponse", result: ActionResult
    ) -> dict[str, bytes]:
        wanted = outputs_by_role({each.path: each.digest for each in result.files})
        files = {role: await door.blob(answer, digest) for role, digest in wanted.items()}
        if "dependencies" in files:
            files["dependencies"] = move_back(files["dependencies"], request.root)
        return files

    @staticmethod
    async def _stream(door: Door, answer: "door_pb2.ExecuteResponse", digest: Digest | None) -> bytes:
        return b"" if digest is None else await door.blob(answer, digest)

    def _check_signature(self, action: Digest, answer: "door_pb2.ExecuteResponse", route: WorkerRoute) -> None:
        if not answer.found:
            raise DependencyError(f"worker {route.worker_id} answers without a result")
        if not self._config.paranoid:
            return
        message = f"corral result 1\n{action}\n".encode() + answer.result
        if not route.result_key or not is_signed(bytes.fromhex(route.result_key), message, answer.signature):
            raise DependencyError(f"the result of worker {route.worker_id} is not signed by it")


def _told(error: CorralError, route: WorkerRoute) -> CorralError:
    if isinstance(error, Unauthenticated):
        return InvalidSpec(f"worker {route.worker_id} does not accept the scheduler's token")
    return error


def _traits(request: CompileRequest, include_set: IncludeSet, hashes: FileHashes) -> list[tuple[str, FileTraits]]:
    return [
        (path, entry.traits)
        for path, _ in include_set.files
        if not path.startswith("/") and (entry := hashes.known(absolute(path, root=request.root))) is not None
    ]


def _of_project(include_set: IncludeSet) -> IncludeSet:
    """Without what the image has of its own: its digest stands for that."""
    return msgspec.structs.replace(
        include_set,
        files=tuple(each for each in include_set.files if not each[0].startswith("/")),
        absent=tuple(each for each in include_set.absent if not each.startswith("/")),
    )


def _first_line(text: bytes) -> str:
    line = text.decode(errors="replace").partition("\n")[0].strip()[:200]
    return line and f": {line}"


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
