"""Programs of others: which versions are known to be vulnerable, and what is said when one is missing or refused."""

from pathlib import Path

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.programs import Policy, find_program, known_vulnerabilities
from corral.sandboxes.runtimes.tenant_users import TenantUsers

CURE = "apt-get install crun"


def names(program: str, version: str, text: str = "") -> set[str]:
    return {advisory.name for advisory in known_vulnerabilities(program, version, text)}


@pytest.mark.parametrize(
    ("program", "version", "known", "unknown"),
    [
        ("runc", "1.1.5", {"CVE-2024-21626", "CVE-2025-31133"}, {"CVE-2019-5736"}),
        ("runc", "1.1.12", {"CVE-2025-31133"}, {"CVE-2024-21626"}),
        ("runc", "1.2.7", {"CVE-2025-52881"}, set()),
        ("runc", "1.2.8", set(), {"CVE-2025-52881"}),
        ("runc", "1.3.2", {"CVE-2025-52881"}, set()),
        ("runc", "1.3.3", set(), {"CVE-2025-52881"}),
        ("runc", "1.4.0", set(), {"CVE-2025-52881"}),
        ("crun", "1.4.3", {"CVE-2022-27650"}, set()),
        ("crun", "1.8.1", set(), {"CVE-2022-27650", "CVE-2024-21626"}),
        ("runsc", "20221219.0", {"CVE-2023-7258"}, set()),
        ("runsc", "20240729.0", set(), {"CVE-2023-7258"}),
    ],
)
def test_a_version_has_the_vulnerabilities_that_were_fixed_later(
    program: str, version: str, known: set[str], unknown: set[str]
) -> None:
    found = names(program, version)

    assert known <= found
    assert not unknown & found


def test_a_distribution_s_own_fix_is_believed() -> None:
    assert "CVE-2024-21626" not in names("runc", "1.1.5", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n")


def fake(directory: Path, text: str) -> str:
    program = directory / "crun"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return str(program)


def test_a_vulnerable_version_is_named_or_refused(tmp_path: Path) -> None:
    old = fake(tmp_path, "crun version 1.3")

    program = find_program(old, ("crun",), policy=Policy.WARN, cure=CURE)

    assert program.about == "crun 1.3 (known vulnerabilities: CVE-2022-27650)"
    with pytest.raises(SandboxFailed, match="CVE-2022-27650"):
        find_program(old, ("crun",), policy=Policy.REFUSE, cure=CURE)


def test_a_missing_or_another_program_is_said(tmp_path: Path) -> None:
    with pytest.raises(SandboxFailed, match="not installed") as missing:
        find_program("/no/such/crun", ("crun",), policy=Policy.WARN, cure=CURE)
    assert missing.value.cure == CURE
    with pytest.raises(SandboxFailed, match="it says 'podman"):
        find_program(fake(tmp_path, "podman version 4.3"), ("crun",), policy=Policy.WARN, cure=CURE)


def test_no_two_tenants_are_the_same_user() -> None:
    users = TenantUsers(1000)

    assert [users.of(tenant) for tenant in ("ann", "bob", "ann", "eve")] == [1000, 1002, 1000, 1004]
