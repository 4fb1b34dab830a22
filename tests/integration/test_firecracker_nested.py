"""The firecracker runtime proved without special hardware: in a machine whose virtualisation is emulated.

The driver's own test suite runs in there, less what takes longest, so that it costs about two minutes; all of it with

    CORRAL_TEST_NESTED=all python -m pytest tests/integration/test_firecracker_nested.py
"""

import os
from pathlib import Path

import pytest

import corral
from corral.kernel.errors import CorralError
from corral.sandboxes.guest.clock_rate import counter_khz
from corral.sandboxes.guest.kit import open_kit
from corral.testing import nested_kvm
from corral.testing.escape_suite import compile_attacks
from corral.testing.firecracker import FirecrackerAbsent, firecracker_programs
from corral.testing.machines import kits, root_in_image, why_no_machines

CONTRACT = Path(__file__).parents[1] / "contract" / "test_runtime_firecracker.py"
SPARED = (
    *("too_much_memory", "too_many", "full_folder", "nothing_is_left", "stopping_ends", "large_output"),
    *("does_not_boot", "snapshot_belongs", "snapshot_keeps", "forgotten", "freezing_leaves"),
)
ATTACKS = (
    *("host-paths", "symlink-mounts", "odd-sockets", "ptrace", "agent-files", "kill-init", "io-uring", "device-nodes"),
    *("become-root", "machine"),
)
ALL = os.environ.get("CORRAL_TEST_NESTED") == "all"
SOME = f"not ({' or '.join(SPARED)}) and (not Escapes or {' or '.join(f'[{name}]' for name in ATTACKS)})"
CHOSEN = "" if ALL else SOME
WITHIN_S = 1800.0 if ALL else 330.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(WITHIN_S + 120)]
SCRIPT = f"""
import os, subprocess, sys
environment = {{
    **os.environ,
    "PYTHONPATH": "/give/src",
    "CORRAL_TEST_FIRECRACKER": "/give/firecracker",
    "CORRAL_TEST_KITS": "/give/kit",
    "CORRAL_TEST_ROOT": "/give/image/root",
    "CORRAL_TEST_ATTACKS": "/give/attack",
    "CORRAL_TEST_PATIENCE_S": "60",
}}
arguments = ["--noconftest", "-c", "/dev/null", "--rootdir=/scratch", "-p", "pytest_asyncio.plugin"]
arguments += ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "markers=slow"]
arguments += ["-o", "asyncio_default_fixture_loop_scope=function", "--import-mode=importlib", "--assert=plain"]
arguments += ["-v", "-rs", "--color=no", "--tb=short", "--durations=12", "-k", {CHOSEN!r}, "/give/{CONTRACT.name}"]
pytest = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], env=environment)
while True:  # process 1 reaps whatever nobody else does
    pid, status = os.wait()
    if pid == pytest.pid:
        break
print("nested-end", os.waitstatus_to_exitcode(status), flush=True)
open("/proc/sysrq-trigger", "w").write("b")
"""


def test_the_driver_s_own_tests_pass_where_virtualisation_is_emulated(tmp_path: Path) -> None:
    if why := why_no_machines():
        pytest.skip(why)
    try:
        programs = firecracker_programs()
        kit = open_kit(kits())
    except (CorralError, FirecrackerAbsent) as error:
        pytest.skip(str(error))
    home = Path(corral.__file__).parent
    parts = ("__init__.py", "kernel", "sandboxes", "testing", "_native")
    given = {
        **{f"src/corral/{part}": home / part for part in parts},
        "firecracker": programs,
        "kit": kit.directory,
        "image": root_in_image(tmp_path),
        "attack": compile_attacks(tmp_path),
        CONTRACT.name: CONTRACT,
    }

    status, said = nested_kvm.run(tmp_path, kit, SCRIPT, given, counter_khz=counter_khz(), within_s=WITHIN_S)

    assert status == 0, said
    assert "skipped" not in said, said
