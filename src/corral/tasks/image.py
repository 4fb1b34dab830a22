"""A run and its OCI image: who gives it, with which secret, what its log hears, and what its process inherits."""

from collections.abc import Mapping
from typing import Final, Protocol

from corral.images.model import ImageSettings, PreparedImage, Progress
from corral.images.ports import ImageLease, OnProgress
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration, format_size
from corral.tasks.core_fields import CoreFields
from corral.tasks.paths import printable
from corral.tasks.run_log import RunLog

_TELL_EVERY_S: Final = 2.0
_STAGES: Final = {
    "waiting": "another process prepares it",
    "unpacking": "is being prepared",
    "finishing": "is unpacked",
}


class RunImages(Protocol):
    """Where a worker's images come from."""

    async def lease(self, text: str, *, secret: str = "", on_progress: OnProgress = ...) -> ImageLease:
        """The image that ``text`` names, ready. Raises and Cancellation: as ``images.service.Images.lease``."""
        ...


class ImageLog:
    """Lines about one preparation in the log of the run that waits for it; none when the image is there already."""

    def __init__(self, reference: str, log: RunLog, clock: Clock) -> None:
        self._reference = reference
        self._log = log
        self._clock = clock
        self._began_s: float | None = None
        self._told_s = 0.0
        self._stage = ""

    def progress(self, progress: Progress) -> None:
        """Called by the preparation, several times a second."""
        now_s = self._clock.monotonic_s()
        if self._began_s is None:
            self._began_s = now_s
        if progress.stage == self._stage and now_s - self._told_s < _TELL_EVERY_S:
            return
        self._stage, self._told_s = progress.stage, now_s
        if progress.reason:
            self._log.line(f"{progress.reason}; it is asked again")
            return
        layer = f", layer {progress.layer} of {progress.layers}" if progress.layer else ""
        size = (
            f", {format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}"
            if progress.total_bytes
            else ""
        )
        self._log.line(f"image {self._reference}: {_STAGES.get(progress.stage, progress.stage)}{layer}{size}")

    def ready(self, image: PreparedImage) -> None:
        """It can be used."""
        if self._began_s is not None:
            took = format_duration(self._clock.monotonic_s() - self._began_s)
            self._log.line(f"image {self._reference}: ready after {took}: {image.digest}")


def image_secret(core: CoreFields, secrets: Mapping[str, str]) -> str:
    """The value of the secret that the payload names for its image, or "". Raises InvalidSpec when there is none."""
    if core.image_secret and core.image_secret not in secrets:
        raise InvalidSpec(f'payload.image_secret: the tenant has no secret "{printable(core.image_secret)}"')
    return secrets.get(core.image_secret, "")


def image_environment(settings: ImageSettings) -> dict[str, str]:
    """The variables that an image sets, without what Linux could not pass on."""
    found = {}
    for each in settings.env:
        name, equals, value = each.partition("=")
        if name and equals and "\0" not in each:
            found[name] = value
    return found
