"""Which compiler a program is. A parallel build asks many times at once; the program is asked once."""

from functools import partial

from corral.compile.beside import Beside
from corral.compile.identity import Identities, Question
from corral.compile.model import CompilerIdentity
from corral.kernel.concurrency import Signal

_FOREVER_S = 3600.0


class Compilers:
    """See the module."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside
        self._identities = Identities()
        self._asking: dict[Question, Signal] = {}

    def known(self, asked: Question) -> CompilerIdentity | None:
        """The answer when it is known and no program has changed."""
        return self._identities.known(asked)

    async def meet(self, asked: Question) -> CompilerIdentity:
        """The answer, whatever it takes. Cancellation: safe; somebody else asks."""
        while (identity := self._identities.known(asked)) is None:
            others = self._asking.get(asked)
            if others is not None:
                await others.wait_notified(within_s=_FOREVER_S)
                continue
            self._asking[asked] = Signal()
            try:
                found = await self._beside.in_thread(partial(self._identities.probe, asked))
                self._identities.remember(asked, found)
                return found[0]
            finally:
                self._asking.pop(asked).notify()
        return identity
