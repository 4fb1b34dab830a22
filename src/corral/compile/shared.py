"""The second tier: an object store (S3, GCS, Azure) that several machines share, through obstore.

Values are whole entries that carry their own key and hash (``entries``), so that a damaged or foreign one is no entry.
A store that fails is left alone for a while: a build must not wait for it once per file.
"""

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from corral.compile.limits import SharedConfig
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec, StoreUnavailable

T = TypeVar("T")
_VERSION: Final = "v1"


class ObjectStoreResults:
    """See ``ports.SharedResults``."""

    def __init__(self, config: SharedConfig, clock: Clock) -> None:
        """Raises InvalidSpec: the URL or an option is none."""
        self._config = config
        self._clock = clock
        self._store = _connect(config)
        self._prefix = f"{config.prefix.strip('/')}/{_VERSION}" if config.prefix.strip("/") else _VERSION
        self._rests_until_s = 0.0

    async def get(self, key: str) -> bytes | None:
        """None also for an object above ``object_bytes``. Raises StoreUnavailable."""
        try:
            answer = await self._within(obstore.get_async(self._store, f"{self._prefix}/{key}"))
            if answer.meta["size"] > self._config.object_bytes:
                return None
            return bytes(await self._within(answer.bytes_async()))
        except FileNotFoundError:
            return None

    async def put(self, key: str, value: bytes) -> None:
        """Raises StoreUnavailable."""
        if len(value) <= self._config.object_bytes:
            await self._within(obstore.put_async(self._store, f"{self._prefix}/{key}", value))

    async def _within(self, request: Awaitable[T]) -> T:
        """``request``, unless the store failed a moment ago. Its own time-outs bound it."""
        if self._clock.monotonic_s() < self._rests_until_s:
            if hasattr(request, "close"):
                request.close()
            raise StoreUnavailable("the shared store failed a moment ago")
        try:
            return await request
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError) as error:
            self._rests_until_s = self._clock.monotonic_s() + self._config.rest_s
            first_line = str(error).partition("\n")[0][:300]
            raise StoreUnavailable(f"the shared store failed: {first_line}") from error


def _connect(config: SharedConfig) -> ObjectStore:
    settings: dict[str, Any] = {}
    deadline = timedelta(seconds=config.deadline_s)
    if config.url.startswith("file:"):
        settings["mkdir"] = True
    elif not config.url.startswith("memory:"):
        plain = config.options.get("endpoint", config.url).startswith("http://")
        settings["client_options"] = {"allow_http": plain, "connect_timeout": deadline, "timeout": deadline}
        settings["retry_config"] = {"max_retries": 1, "retry_timeout": deadline}
        settings["config"] = dict(config.options)
    try:
        return from_url(config.url, **settings)
    except (BaseError, ValueError, TypeError, msgspec.MsgspecError) as error:
        raise InvalidSpec(f'compile.shared.url: "{config.url}" cannot be used: {error}', field="url") from error
