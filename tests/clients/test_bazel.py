"""A real, unmodified Bazel builds with Corral: remote execution and its cache."""

import threading
from contextlib import suppress

import psutil
import pytest

from corral.testing.bazel import GENRULES, Bazel
from corral.testing.processes import CorralProcess, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def remote(corral: CorralProcess, *more: str) -> tuple[str, ...]:
    return (
        f"--remote_executor=grpc://{corral.reapi}",
        "--remote_instance_name=default",
        *more,
    )


def below(corral: CorralProcess) -> list[psutil.Process]:
    """Every process of this Corral that lives."""
    with suppress(psutil.NoSuchProcess):
        return [each for each in corral.process.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return []


def test_a_workspace_is_built_remotely_then_from_the_cache_then_only_what_changed(
    corral: CorralProcess, bazel: Bazel
) -> None:
    first = bazel.run("build", *remote(corral), "//...")
    assert first.status == 0, first.words
    assert set(first.processes) == {"remote"}
    assert (bazel.workspace / "bazel-bin" / "said.txt").read_text() == "42 42\n"

    bazel.run("clean")
    second = bazel.run("build", *remote(corral), "//...")
    assert second.processes == {"remote cache hit": first.processes["remote"]}, second.words
    assert (bazel.workspace / "bazel-bin" / "said.txt").read_text() == "42 42\n"

    (bazel.workspace / "value.txt").write_text("43\n")
    bazel.run("clean")
    third = bazel.run("build", *remote(corral), "//...")
    assert third.processes["remote cache hit"] >= GENRULES, third.words
    assert 0 < third.processes["remote"] < first.processes["remote"]
    assert (bazel.workspace / "bazel-bin" / "said.txt").read_text() == "43 43\n"


def test_tests_run_remotely_with_little_to_download(corral: CorralProcess, bazel: Bazel) -> None:
    tested = bazel.run("test", *remote(corral, "--remote_download_minimal"), "//...")

    assert tested.status == 0, tested.words
    assert "2 tests pass" in tested.words


def test_an_action_that_fails_tells_its_own_words_and_is_not_cached(corral: CorralProcess, bazel: Bazel) -> None:
    broken = bazel.workspace / "broken"
    broken.mkdir()
    (broken / "BUILD").write_text('genrule(name = "b", outs = ["b.txt"], cmd = "echo its own words >&2; exit 7")\n')

    try:
        first, second = (bazel.run("build", *remote(corral), "//broken:b") for _ in range(2))
    finally:
        (broken / "BUILD").unlink()

    for failed in (first, second):
        assert failed.status == 1
        assert "its own words" in failed.words
        assert "(Exit 7)" in failed.words


def test_an_action_outlives_a_killed_scheduler(corral: CorralProcess, bazel: Bazel) -> None:
    slow = bazel.workspace / "slow"
    slow.mkdir()
    (slow / "BUILD").write_text('genrule(name = "s", outs = ["s.txt"], cmd = "sleep 4; echo done > $@")\n')
    scheduler = corral.child("scheduler")
    assert scheduler is not None

    def kill_when_it_runs() -> None:
        wait_until(lambda: any("sleep 4" in " ".join(each.cmdline()) for each in below(corral)), "the action")
        scheduler.kill()

    killer = threading.Thread(target=kill_when_it_runs)
    killer.start()
    built = bazel.run("build", *remote(corral, "--remote_retries=20"), "//slow:s")
    killer.join()
    (slow / "BUILD").unlink()

    assert built.status == 0, built.words
    assert built.processes == {"remote": 1}
