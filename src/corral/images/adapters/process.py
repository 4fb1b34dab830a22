"""Runs ``corral.images.unpack`` as a child process: starts it, hears how far it is, ends it in time."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Final

import msgspec

from corral.images.model import Failed, Order, Progress, Tally, Unpacked
from corral.images.ports import OnProgress
from corral.kernel.concurrency import finish
from corral.kernel.errors import (
    BlobCorrupt,
    CorralError,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
    Refused,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)

_ERRORS: Final[dict[str, type[CorralError]]] = {
    kind.code: kind
    for kind in (
        BlobCorrupt,
        InvalidSpec,
        NotFound,
        QuotaExceeded,
        Refused,
        StoreUnavailable,
        TooLarge,
        Unauthenticated,
    )
}
_LINE_BYTES_MAX: Final = 64 * 1024
_LAST_WORDS_BYTES: Final = 4096
_END_BY_ITSELF_S: Final = 3.0
_END_WITHIN_S: Final = 10.0
_SPOKEN = Progress | Unpacked | Failed


async def unpack(order: Order, *, lock: int, on_progress: OnProgress) -> Tally:
    """Carry out ``order`` in a process of its own, which holds ``lock`` (a descriptor) as long as it lives.

    Raises: InvalidSpec, NotFound, BlobCorrupt, TooLarge, QuotaExceeded, StoreUnavailable, Refused, Unauthenticated.
    Cancellation: the process is killed and reaped first.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "corral.images.unpack"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES_MAX,
        pass_fds=(lock,),
        start_new_session=True,
        env={
            key: os.environ[key] for key in ("PATH", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR") if key in os.environ
        },
    )
    within_s = order.limits.prepare_within_s
    try:
        async with asyncio.timeout(within_s):
            return await _heard(process, order, on_progress)
    except TimeoutError:
        raise TooLarge(
            f"{order.subject}: takes longer than images.limits.prepare_within_s ({within_s:g} s)",
            limit="prepare_within_s",
        ) from None
    finally:
        await finish(_ended(process), within_s=_END_WITHIN_S)


async def _heard(process: asyncio.subprocess.Process, order: Order, on_progress: OnProgress) -> Tally:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError, RuntimeError):  # it ended already (uvloop says RuntimeError); what it said tells why
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        await process.stdin.drain()
    while line := await process.stdout.readline():
        match msgspec.json.decode(line, type=_SPOKEN):
            case Progress() as progress:
                on_progress(progress)
            case Unpacked(tally=tally):
                return tally
            case Failed() as failed:
                if failed.code not in _ERRORS:
                    raise RuntimeError(failed.message)
                raise _ERRORS[failed.code](failed.message, cure=failed.cure)
    raise await _silent(process, order)


async def _silent(process: asyncio.subprocess.Process, order: Order) -> Exception:
    """It ended without a last word: the kernel killed it, or it is broken."""
    assert process.stderr is not None
    said = (await process.stderr.read(_LAST_WORDS_BYTES)).decode(errors="replace").strip()
    status = await process.wait()
    if status == -signal.SIGXCPU:
        return TooLarge(f"{order.subject}: takes longer than images.limits.prepare_within_s allows", limit="time")
    if status == -signal.SIGKILL:
        return StoreUnavailable(f"{order.subject}: its preparation was killed, perhaps for want of memory")
    return RuntimeError(f"{order.subject}: its preparation ended with status {status}: {said[-1000:]}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """It ends with its stdin; killed if it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_BY_ITSELF_S):
            await process.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
