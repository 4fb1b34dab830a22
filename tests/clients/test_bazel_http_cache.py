"""A real, unmodified Bazel builds on its own machine with the plain HTTP cache."""

import pytest

from corral.testing.bazel import Bazel
from corral.testing.processes import CorralProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_plain_http_cache_serves_a_second_build(corral: CorralProcess, bazel: Bazel) -> None:
    host = corral.url.removeprefix("http://")
    cached = (f"--remote_cache=http://{host}/cache/default", "--spawn_strategy=local", "--genrule_strategy=local")
    first = bazel.run("build", *cached, "//...")
    assert first.status == 0, first.words
    assert "remote cache hit" not in first.processes

    bazel.run("clean")
    second = bazel.run("build", *cached, "//...")
    assert set(second.processes) == {"remote cache hit"}, second.words
