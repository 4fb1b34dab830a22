"""What registries say a name stands for: asked for patiently, and believed for a moment."""

import asyncio
from typing import Final, Protocol

from corral.images.model import ImageLimits, ImagesConfig, Manifest, Place, Platform, Progress, Reference
from corral.images.ports import OnProgress
from corral.kernel.clock import Clock
from corral.kernel.errors import StoreUnavailable

_KNOWN_MAX: Final = 1000
_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 8.0


class Resolve(Protocol):
    """``adapters.sources.resolve``, given by whoever composes: it brings libraries that an idle worker spares."""

    def __call__(self, place: Place, wanted: str, platform: Platform, *, subject: str, limits: ImageLimits) -> Manifest:
        """Blocking."""
        ...


class Manifests:
    """The manifests of the images of one platform."""

    def __init__(self, config: ImagesConfig, *, clock: Clock, platform: Platform, resolve: Resolve) -> None:
        self._config = config
        self._clock = clock
        self._platform = platform
        self._resolve = resolve
        self._known: dict[tuple[str, Place], tuple[float, Manifest]] = {}

    async def now(self, place: Place, wanted: str, subject: str) -> Manifest:
        """What the place says now. Raises as ``service.Images.lease``."""
        return await asyncio.to_thread(
            self._resolve, place, wanted, self._platform, subject=subject, limits=self._config.limits
        )

    async def of(self, place: Place, reference: Reference, subject: str, on_progress: OnProgress) -> Manifest:
        """What the place says to this asker now, or has said a moment ago.

        A registry that is being restarted costs time, and not the run: it is asked again, after pauses that double,
        for ``patience_s``. Raises as ``service.Images.lease``.
        """
        key = (reference.wanted, place)
        now_s = self._clock.monotonic_s()
        known = self._known.get(key)
        if known is not None and (reference.digest or now_s - known[0] < self._config.tag_ttl_s):
            return known[1]
        until_s, pause_s = now_s + self._config.patience_s, _PAUSE_FIRST_S
        while True:
            try:
                manifest = await self.now(place, reference.wanted, subject)
            except StoreUnavailable as error:
                left_s = until_s - self._clock.monotonic_s()
                if left_s <= 0:
                    raise
                on_progress(Progress(stage="unreachable", reason=error.message))
                await asyncio.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            else:
                break
        if len(self._known) >= _KNOWN_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[key] = (self._clock.monotonic_s(), manifest)
        return manifest
