"""The plugins that Corral ships. Their payload keys are valid everywhere; a worker may have some switched off."""

from typing import Final

from corral.tasks.plugin import Plugin
from corral.tasks.plugins.artifacts import ArtifactsPlugin
from corral.tasks.plugins.cache import CachePlugin
from corral.tasks.plugins.env import EnvPlugin
from corral.tasks.plugins.livelog import LiveLogPlugin
from corral.tasks.plugins.maxruntime import MaxRunTimePlugin
from corral.tasks.plugins.success import SuccessPlugin
from corral.tasks.plugins.watchdog import WatchdogPlugin

BUILT_IN: Final[tuple[type[Plugin], ...]] = (
    EnvPlugin,
    LiveLogPlugin,
    ArtifactsPlugin,
    CachePlugin,
    MaxRunTimePlugin,
    SuccessPlugin,
    WatchdogPlugin,
)
