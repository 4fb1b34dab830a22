"""The tiers behind the disk, in order: a store that machines share, then the fleet. Each may be absent."""

from collections.abc import Callable

import blake3
import msgspec

from corral.compile import closure, key
from corral.compile.entries import (
    Content,
    ResultEntry,
    SetsEntry,
    compressed,
    decode_result,
    decode_sets,
    encode,
)
from corral.compile.files import FileTable
from corral.compile.model import CompilerIdentity, IncludeSet, Outcome, OutputFile, Result
from corral.compile.plan import LiveSet, Plan
from corral.compile.ports import CompileAnswer, CompileRequest, RemoteCompiler, SharedResults
from corral.kernel.errors import CorralError


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came from elsewhere; ``entry`` None when the compiler said no (``status``, ``stderr``)."""

    outcome: Outcome
    include_set: IncludeSet
    entry: ResultEntry | None = None
    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    note: str = ""


class Elsewhere:
    """Asks the shared store and the fleet."""

    def __init__(self, *, shared: SharedResults | None = None, remote: RemoteCompiler | None = None) -> None:
        self._shared = shared
        self._remote = remote

    def identity_of(self, plan: Plan, here: CompilerIdentity) -> CompilerIdentity:
        """Whose object ``plan`` asks for."""
        if self._remote is None or not plan.travels:
            return here
        return self._remote.identity_of(plan.argv[0], here)

    def refusal(self, plan: Plan) -> str:
        """Why no worker is asked for ``plan``; "" when one is, or when there is no fleet."""
        if self._remote is None or plan.travels:
            return ""
        if not plan.root:
            return "the project has no mark; put a file .corral into its root"
        return "it is for the processor of this machine"

    async def find(
        self,
        plan: Plan,
        live: LiveSet | None,
        holding: Callable[[list[LiveSet]], LiveSet | None],
        hashes: FileTable,
    ) -> Found | None:
        """The result of ``plan``; None when nobody has it and nobody may compile it.

        ``live`` is what a compile now would read, as far as it is known here; ``holding`` finds such a set in others.

        Raises: CorralError, when the fleet was asked and could not.
        """
        if self._shared is not None:
            found = await self._from_shared(self._shared, plan, holding)
            if found is not None:
                return found
        if self._remote is None or not plan.travels:
            return None
        request = CompileRequest(
            argv=plan.argv,
            cwd=plan.cwd,
            root=plan.root,
            environment=plan.environment,
            invocation=plan.invocation,
            cacheable=plan.cacheable,
            identity=plan.met,
            inputs=plan.inputs,
            request_key=plan.request_key,
            include_set=None if live is None else live.include_set,
        )
        return _found(plan, await self._remote.compile(request, hashes))

    async def share(self, request_key: str, sets: tuple[tuple[IncludeSet, str], ...], entry: ResultEntry) -> None:
        """Give a result to the shared store; entries that lie outside of themselves stay here."""
        if self._shared is None or not all(content.inside for content in entry.contents):
            return
        await self._shared.put(f"results/{entry.key}", encode(entry))
        await self._shared.put(f"sets/{request_key}", encode(SetsEntry(key=request_key, sets=sets)))

    async def close(self) -> None:
        """Free connections; idempotent."""
        if self._remote is not None:
            await self._remote.close()

    @staticmethod
    async def _from_shared(
        shared: SharedResults, plan: Plan, holding: Callable[[list[LiveSet]], LiveSet | None]
    ) -> Found | None:
        try:
            data = await shared.get(f"sets/{plan.request_key}")
            sets = None if data is None else decode_sets(data, plan.request_key)
            live = None if sets is None else holding(plan.live(sets.sets))
            if live is None:
                return None
            data = await shared.get(f"results/{live.result_key}")
            entry = None if data is None else decode_result(data, live.result_key)
        except CorralError:
            return None  # a store that is down is a store that has nothing; the next tier is asked
        if entry is None or not all(content.inside for content in entry.contents):
            return None
        return Found(outcome=Outcome.SHARED_HIT, include_set=live.include_set, entry=entry)


def _found(plan: Plan, answer: CompileAnswer) -> Found:
    if answer.exit_code:
        return Found(
            outcome=answer.outcome,
            include_set=answer.include_set,
            status=answer.exit_code,
            stdout=answer.stdout,
            stderr=answer.stderr,
            note=answer.note,
        )
    files = {
        role: closure.store_dependencies(data, root=plan.root) if role == "dependencies" else data
        for role, data in answer.files.items()
    }
    result = Result(
        files=tuple(
            OutputFile(role=role, digest=blake3.blake3(data).hexdigest(), size_bytes=len(data))
            for role, data in files.items()
        ),
        stdout=closure.store_dependencies(answer.stdout, root=plan.root),
        stderr=closure.store_dependencies(answer.stderr, root=plan.root),
        duration_s=answer.duration_s,
        origin=answer.worker,
        execution=answer.execution,
    )
    entry = ResultEntry(
        key=key.result_key(plan.request_key, answer.include_set),
        result=result,
        contents=tuple(Content(role, inside=True, data=compressed(data, 1)) for role, data in files.items()),
    )
    return Found(outcome=answer.outcome, include_set=answer.include_set, entry=entry, note=answer.note)
