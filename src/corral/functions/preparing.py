"""Programs that workers are asked to check and compile, until they have answered."""

import asyncio
from collections.abc import Callable, Collection

from corral.functions.model import Prepared, PrepareOrder, RevisionKey, RevisionSpec


class Preparing:
    """``wake`` makes a worker hear its orders anew."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._asked: dict[RevisionKey, tuple[str, PrepareOrder, asyncio.Future[Prepared]]] = {}

    def orders(self, worker: str) -> tuple[PrepareOrder, ...]:
        """What a worker is asked."""
        return tuple(order for chosen, order, _ in self._asked.values() if chosen == worker)

    def heard(self, worker: str, prepared: Prepared) -> None:
        """A worker answered."""
        chosen, _, answer = self._asked.get(prepared.key, ("", None, None))
        if chosen == worker and answer is not None and not answer.done():
            answer.set_result(prepared)

    def lost(self, workers: Collection[str]) -> None:
        """These will not answer."""
        for key, (worker, _, answer) in list(self._asked.items()):
            if worker in workers and not answer.done():
                answer.set_result(Prepared(key=key, code="worker-lost", text=f"{worker} was lost"))

    async def ask(self, worker: str, key: RevisionKey, spec: RevisionSpec) -> Prepared:
        """Ask a worker, or wait for the answer to the same question. Cancellation: the question is taken back."""
        joined = self._asked.get(key)
        if joined is not None:
            await asyncio.wait({joined[2]})
            return joined[2].result()
        answer: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        self._asked[key] = (worker, PrepareOrder(key=key, spec=spec), answer)
        self._wake(worker)
        try:
            await asyncio.wait({answer})
        finally:
            del self._asked[key]
            if not answer.done():
                answer.set_result(Prepared(key=key, code="worker-lost", text="nobody waits for it any more"))
            self._wake(worker)
        return answer.result()
