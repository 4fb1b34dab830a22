"""A real, unmodified Bazel builds with Corral: remote execution and its cache."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from corral.testing.bazel import GENRULES, Bazel
from corral.testing.casd import NoCasd, casd_programs, in_front_of, running_casd
from corral.testing.certificates import issue
from corral.testing.images import (
    build,
    debian_registry,
    directory,
    file,
    host_tree,
    symlink,
    tar_of,
    this_platform,
    why_no_registry,
)
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


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is a registry")
def test_an_action_runs_in_the_image_that_it_names(corral: CorralProcess, bazel: Bazel, tmp_path: Path) -> None:
    words = directory("etc"), file("etc/motd", b"from the image\n")
    layers = host_tree("bash", "cat"), tar_of(symlink("bin", "usr/bin"), *words)
    image = build(*layers, architecture=this_platform().architecture)
    package = bazel.workspace / "imaged"
    package.mkdir()
    (package / "BUILD").write_text('genrule(name = "i", outs = ["i.txt"], cmd = "cat /etc/motd > $@")\n')

    def built_in(name: str) -> tuple[str, dict[str, int]]:
        wanted = f'properties:{{name:"container-image" value:"docker://{name}"}}'
        done = bazel.run("build", *remote(corral, f"--remote_default_platform_properties={wanted}"), "//imaged:i")
        return done.words, done.processes

    with debian_registry(tmp_path) as registry:
        repository = registry.push("tools", image).rpartition(":")[0]
        try:
            said, first = built_in(f"{repository}@{image.digest}")
            assert first == {"remote": 1}, said
            written = (bazel.workspace / "bazel-bin" / "imaged" / "i.txt").read_text()
            absent, _ = built_in(f"{registry.address}/absent:1")
        finally:
            (package / "BUILD").unlink()

    assert written == "from the image\n"
    assert "has no such image" in absent


def test_a_certificate_of_the_tenant_lets_a_build_in(bazel: Bazel, tmp_path: Path) -> None:
    """Bazel 2 has no client certificates; buildbox-casd, a client of the protocol in C++, shows one for it."""
    try:
        casd_programs()
    except NoCasd as reason:
        pytest.skip(f"no casd here: {reason}")
    ca = issue(tmp_path, "ca", ca=True)
    door, ann = (issue(tmp_path, name, by=ca) for name in ("door", "ann"))
    home = tmp_path / "up"
    home.mkdir()
    tenants = (f'[tenants.{name}]\ntokens = ["token-of-{name}-0123456789"]\n' for name in ("ann", "bob"))
    (home / "corral.toml").write_text("".join(tenants))
    tls = (f"reapi.tls.certificate={door.crt}", f"reapi.tls.key={door.key}", f"reapi.tls.client_ca={ca.crt}")
    up = CorralProcess("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", *tls)

    try:
        up.start()
        with running_casd(*in_front_of(up.reapi, ca=ca, shows=ann)) as casd:
            bazel.run("clean")
            built = bazel.run("build", f"--remote_executor=grpc://{casd.address}", "//:n0")
        with (
            pytest.raises(AssertionError, match="is not this token's tenant"),
            running_casd(*in_front_of(up.reapi, ca=ca, shows=ann, instance="bob")),
        ):
            pass
        with (
            pytest.raises(AssertionError, match="casd ended with status"),
            running_casd(*in_front_of(up.reapi, ca=ca, shows=None)),
        ):
            pass
    finally:
        assert up.stop() == 0, up.words()

    assert built.status == 0, built.words
    assert built.processes == {"remote": 1}
