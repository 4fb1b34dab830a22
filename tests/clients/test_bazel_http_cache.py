"""A real, unmodified Bazel builds on its own machine with the plain HTTP cache."""

import pytest

from corral.testing.bazel import Bazel
from corral.testing.processes import CorralProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_plain_http_cache_serves_a_second_build(corral: CorralProcess, bazel: Bazel) -> None:
    host = corral.url.removeprefix("http://")
    cached = (f"--remote_cache=http://{host}/cache/default", "--spawn_strategy=local", "--genrule_strategy=local")
    bazel.run("clean")  # what Bazel holds for up to date it neither runs nor uploads
    first = bazel.run("build", *cached, "//...")
    assert first.status == 0, first.words
    assert set(first.processes) == {"local"}

    bazel.run("clean")
    second = bazel.run("build", *cached, "//...")
    assert second.processes == {"remote cache hit": first.processes["local"]}, second.words


def test_what_bazel_holds_for_up_to_date_it_neither_runs_nor_uploads(corral: CorralProcess, bazel: Bazel) -> None:
    host = corral.url.removeprefix("http://")
    plain = ("--spawn_strategy=local", "--genrule_strategy=local")
    cached = (f"--remote_cache=http://{host}/cache/default", *plain)
    (bazel.workspace / "value.txt").write_text("44\n")
    bazel.run("clean")
    without = bazel.run("build", *plain, "//...")
    upload = bazel.run("build", *cached, "//...")
    bazel.run("clean")
    after = bazel.run("build", *cached, "//...")
    bazel.run("clean")
    then = bazel.run("build", *cached, "//...")

    assert without.processes["local"] > 0
    assert upload.processes.get("local", 0) < without.processes["local"]
    assert after.processes["local"] > 0
    assert "WARNING" not in after.words
    assert set(then.processes) == {"remote cache hit"}, then.words
