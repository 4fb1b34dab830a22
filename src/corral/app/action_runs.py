"""Actions on a worker: the runner with what it stands on, and the kind of run that the queue's claims become."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from corral.actions.adapters.messages import write_result
from corral.actions.adapters.overlay import OverlaidInputs
from corral.actions.adapters.stage_helper import StageHelper
from corral.actions.errors import MissingBlobs
from corral.actions.fetching import Directories
from corral.actions.input_files import InputFiles
from corral.actions.inputs import CopiedInputs
from corral.actions.model import ActionReport, Performed
from corral.actions.payload import read_payload, write_report
from corral.actions.ports import Images, InputRoots
from corral.actions.runner import ActionRunner, RunnerServices, SandboxPolicy
from corral.actions.trees import SharedTrees
from corral.app.config_sections import Config
from corral.blobs.content import write_bytes
from corral.blobs.ports import BlobStore
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.sandboxes.pool import Pools
from corral.tasks.model import Phase, Reason, Resolved, RunUsage
from corral.tasks.ports import Claim

_REPORT_BYTES_MAX: Final = 64 * 1024


class ActionKind:
    """See ``tasks.run.WorkKind``: an action's run, told in the queue's words."""

    def __init__(self, runner: ActionRunner, blobs: BlobStore, clock: Clock) -> None:
        self._runner = runner
        self._blobs = blobs
        self._clock = clock

    async def carry_out(self, claim: Claim, *, on_started: Callable[[float], None]) -> Resolved:
        payload = read_payload(claim.definition.payload)
        digest = Digest.parse(payload.digest)
        try:
            performed = await self._runner.run(
                claim.tenant,
                digest,
                platform=payload.platform,
                timeout_s=payload.timeout_s,
                queued_s=payload.queued_s,
                on_started=on_started,
            )
        except MissingBlobs as error:
            report = ActionReport(missing=tuple(str(each) for each in error.digests))
            return Resolved(
                at_s=self._clock.now_s(),
                phase=Phase.EXCEPTION,
                reason=Reason.MALFORMED_PAYLOAD,
                message=error.message,
                inputs=(str(digest),),
                outcome=await self._outcome(claim.tenant, report),
            )
        return self._resolved(digest, performed, await self._outcome(claim.tenant, _report(performed)))

    async def _outcome(self, tenant: str, report: ActionReport) -> str:
        text = write_report(report)
        if len(text) <= _REPORT_BYTES_MAX:
            return text
        digest = await write_bytes(self._blobs, tenant, text.encode())
        return write_report(ActionReport(elsewhere=str(digest)))

    def _resolved(self, digest: Digest, performed: Performed, outcome: str) -> Resolved:
        usage = performed.usage
        return Resolved(
            at_s=self._clock.now_s(),
            phase=Phase.COMPLETED if performed.succeeded else Phase.FAILED,
            exit_status=performed.exit_status,
            signal=performed.signal,
            end=performed.ended.value,
            message=performed.message,
            argv=performed.argv,
            image=performed.image,
            env_digest=performed.env_digest,
            inputs=(str(digest),),
            usage=RunUsage(
                wall_s=usage.wall_s,
                cpu_user_s=usage.cpu_user_s,
                cpu_system_s=usage.cpu_system_s,
                memory_peak_bytes=usage.memory_peak_bytes,
                acquire_s=performed.acquire_s,
                warm=performed.warm,
                cold_reason=performed.cold_reason,
                sandbox=performed.sandbox,
                runtime=performed.runtime,
            ),
            outcome=outcome,
        )


@contextmanager
def open_runner(
    config: Config,
    *,
    blobs: BlobStore,
    pools: Pools,
    images: Images | None,
    spool: Path,
    worker_id: str,
    clock: Clock,
) -> Iterator[ActionRunner]:
    """The worker's runner; its folder is emptied of what a predecessor left."""
    settings = config.actions.worker
    folder = config.data / "actions"
    if folder.exists():
        shutil.rmtree(folder)
    files = InputFiles(folder / "files", blobs, total_bytes=settings.cache_bytes, at_once=settings.fetch_at_once)
    files.open_empty()
    copied = CopiedInputs(Directories(blobs, settings), files)
    inputs: InputRoots = copied
    with ExitStack() as stack:
        if settings.overlay:
            trees = SharedTrees(folder / "trees", files, total_bytes=settings.cache_bytes)
            overlaid = OverlaidInputs(copied, trees, StageHelper())
            stack.callback(overlaid.close)
            inputs = overlaid
        yield ActionRunner(
            RunnerServices(
                blobs=blobs,
                inputs=inputs,
                sandboxes=pools,
                policy=SandboxPolicy(
                    runtime=config.runs.runtime or config.runtimes.names[0],
                    size=config.runs.size.size(),
                    size_max=config.runs.size_max.size(),
                    network=config.runs.network,
                    roots=config.runs.roots,
                ),
                clock=clock,
                spool=spool,
                worker=worker_id,
                images=images,
                config=settings,
            )
        )


def _report(performed: Performed) -> ActionReport:
    return ActionReport(
        ended=performed.ended,
        message=performed.message,
        result=write_result(performed.result),
        named=tuple(str(each) for each in performed.named),
        do_not_cache=performed.do_not_cache,
    )
