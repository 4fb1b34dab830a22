"""Whether a client's tool chain is the same as this machine's: compiler by content, headers by hash. Blocks in threads.

A compile without an image runs on the worker's own root. Its object is the client's own only when the compiler and
every file outside of the project are the same here; both are remembered while the files stay untouched.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Final

from corral.compile import closure
from corral.compile.files import FileTable
from corral.compile.identity import Identities, question

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FILES_MAX: Final = 50_000


class LocalToolchains:
    """See the module; one for a worker."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._identities = Identities()
        self._files = FileTable(closure.traits, now_s, entries_max=_FILES_MAX)
        self._turn = threading.Lock()

    async def differing(self, compiler: str, identity: str, files: Sequence[tuple[str, str]]) -> str:
        """What is another one here: the compiler, or the first such file; "" when all is the same."""
        return await asyncio.to_thread(self._differing, compiler, identity, files)

    def _differing(self, compiler: str, identity: str, files: Sequence[tuple[str, str]]) -> str:
        with self._turn:
            asked = question(compiler, {"PATH": _PATH})
            known = self._identities.known(asked)
            if known is None:
                found = self._identities.probe(asked)
                self._identities.remember(asked, found)
                known = found[0]
            if known.vendor is None or known.digest != identity:
                return compiler
            if self._files.all_match(list(files)):
                return ""
            return next((path for path, content_hash in files if not self._files.matches(path, content_hash)), "")
