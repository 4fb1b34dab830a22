"""The doctor tries every runtime on the real machine."""

import tempfile
from pathlib import Path

import pytest

from corral.kernel.clock import SystemClock
from corral.sandboxes import doctor
from corral.sandboxes.runtimes.registry import ABSENT, KNOWN
from corral.testing.runtime_contract import belongings, left_behind


async def test_every_runtime_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    await doctor.examine(clock=SystemClock(), directory=tmp_path)
    before = belongings()

    report = await doctor.examine(clock=SystemClock(), directory=tmp_path)

    assert [finding.name for finding in report.runtimes] == [*KNOWN, *ABSENT]
    missing = {  # Debian packages, and what an operator makes of them; the rest comes with us
        "oci": ("is not installed",),
        "gvisor": ("is not installed",),
        "qemu": ("is not installed", "there is no guest kit"),
        "firecracker": ("is not installed", "there is no guest kit", "no guest boots"),
    }
    for finding in report.runtimes:
        works = finding.name in KNOWN and not any(each in finding.detail for each in missing.get(finding.name, ()))
        assert finding.works == works, finding
    assert report.healthy
    assert all(finding.cure for finding in report.runtimes if not finding.works)
    assert left_behind(before) == {}


async def test_a_missing_agent_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRAL_AGENT", str(tmp_path / "absent"))

    report = await doctor.examine(clock=SystemClock())

    assert not report.healthy
    (bubblewrap,) = [finding for finding in report.runtimes if finding.name == "bubblewrap"]
    assert "make native" in bubblewrap.cure
    (agent,) = [fact for fact in report.facts if fact.name == "agent"]
    assert not agent.good


async def test_an_agent_that_never_answers_costs_no_more_than_the_deadline_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o755)
    monkeypatch.setenv("CORRAL_AGENT", str(mute))
    (temporary := tmp_path / "temporary").mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    clock = SystemClock()
    began_s = clock.monotonic_s()

    report = await doctor.examine(clock=clock, within_s=0.5)

    assert not any(finding.works for finding in report.runtimes)
    assert clock.monotonic_s() - began_s < 9
    assert list(temporary.iterdir()) == []
