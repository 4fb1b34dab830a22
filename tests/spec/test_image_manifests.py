"""A registry that does not answer is asked again for a while, and no longer. Runs on a virtual clock."""

import pytest

from corral.images.manifests import Manifests
from corral.images.model import ImageLimits, ImagesConfig, Manifest, Place, Platform, Progress, Reference, RegistryPlace
from corral.kernel.clock import LoopClock
from corral.kernel.errors import NotFound, StoreUnavailable

pytestmark = pytest.mark.looptime

PLATFORM = Platform(architecture="amd64")
REFERENCE = Reference.parse("127.0.0.1:5000/demo:1")
PLACE = RegistryPlace(registry="127.0.0.1:5000", repository="demo", insecure=True)
MANIFEST = Manifest(digest="sha256:" + "0" * 64, platform=PLATFORM, layers=())


class Registry:
    """Fails so many times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    def resolve(self, place: Place, wanted: str, platform: Platform, *, subject: str, limits: ImageLimits) -> Manifest:
        self.asked += 1
        if self.asked <= self.failures:
            raise StoreUnavailable(f"{subject}: the registry cannot be reached")
        if wanted != "1":
            raise NotFound(f"{subject}: no such image")
        return MANIFEST


def manifests(registry: Registry, *, patience_s: float = 30.0) -> Manifests:
    config = ImagesConfig(patience_s=patience_s)
    return Manifests(config, clock=LoopClock(), platform=PLATFORM, resolve=registry.resolve)


async def test_a_registry_that_is_restarted_costs_time_and_not_the_run() -> None:
    registry, told = Registry(failures=4), list[Progress]()

    found = await manifests(registry).of(PLACE, REFERENCE, "image demo", told.append)

    assert (found, registry.asked) == (MANIFEST, 5)
    assert {each.stage for each in told} == {"unreachable"}
    assert told[0].reason == "image demo: the registry cannot be reached"


@pytest.mark.parametrize(("patience_s", "asked"), [(0.0, {1}), (0.4, {2}), (30.0, {7, 8})])
async def test_a_registry_that_stays_away_is_given_up_with_its_own_words(patience_s: float, asked: set[int]) -> None:
    registry, began_s = Registry(failures=1000), LoopClock().monotonic_s()

    with pytest.raises(StoreUnavailable, match="image demo: the registry cannot be reached"):
        await manifests(registry, patience_s=patience_s).of(PLACE, REFERENCE, "image demo", lambda _: None)

    assert registry.asked in asked
    assert LoopClock().monotonic_s() - began_s == pytest.approx(patience_s, abs=1.0)


async def test_what_a_registry_refuses_is_not_asked_again() -> None:
    registry = Registry(failures=0)
    with pytest.raises(NotFound):
        await manifests(registry).of(PLACE, Reference.parse("127.0.0.1:5000/demo:2"), "image demo", lambda _: None)

    assert registry.asked == 1


async def test_an_answer_is_believed_for_a_moment() -> None:
    registry = Registry(failures=0)
    asking = manifests(registry)
    for _ in range(3):
        await asking.of(PLACE, REFERENCE, "image demo", lambda _: None)

    assert registry.asked == 1
