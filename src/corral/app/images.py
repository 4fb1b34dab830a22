"""The images of this machine, put together: for the worker and for ``corral image``."""

import os
from collections.abc import Callable, Collection

from corral.app.config_sections import Config
from corral.images.model import ImageLimits, Manifest, Place, Platform
from corral.images.service import Images
from corral.kernel.clock import Clock


def make_images(config: Config, clock: Clock, *, in_use: Callable[[], Collection[str]] = tuple) -> Images:
    """Not open yet. Raises InvalidSpec for the directory, or a machine that no image is for."""
    named = config.images.platform.rpartition("/")[2]
    return Images(
        config.images,
        config.images_directory,
        clock=clock,
        platform=Platform.of_machine(named or os.uname().machine),
        resolve=_resolve,
        in_use=in_use,
    )


def _resolve(place: Place, wanted: str, platform: Platform, *, subject: str, limits: ImageLimits) -> Manifest:
    # HTTP, TLS and decompression cost five megabytes, which a worker without images spares
    from corral.images.adapters.sources import resolve  # noqa: PLC0415

    return resolve(place, wanted, platform, subject=subject, limits=limits)
