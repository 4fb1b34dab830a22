"""Firecracker, in a machine whose virtualisation is emulated, since the machine of these figures has no usable KVM.

Everything is some twenty times slower in there: bounds in milliseconds mean nothing, ratios to bare Firecracker do.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import corral
from bench.report import Row, beside
from corral.kernel.errors import CorralError
from corral.sandboxes.guest.clock_rate import counter_khz
from corral.sandboxes.guest.kit import open_kit
from corral.testing import nested_kvm
from corral.testing.firecracker import FirecrackerAbsent, firecracker_programs
from corral.testing.machines import kits, root_in_image, why_no_machines

_WITHIN_S = 240.0
_PARTS = ("__init__.py", "kernel", "sandboxes", "testing", "_native")
_SCRIPT = """
import os, subprocess, sys
environment = {**os.environ, "PYTHONPATH": "/give/src:/give"}
status = subprocess.run([sys.executable, "-m", "bench.firecracker_inside"], env=environment).returncode
print("nested-end", status, flush=True)
open("/proc/sysrq-trigger", "w").write("b")
"""


def measure() -> Sequence[Row]:
    """The rows; none, and a word why, where the machine cannot be made."""
    if why := why_no_machines():
        print(f"firecracker: {why}: no figures", file=sys.stderr)
        return ()
    try:
        programs, kit = firecracker_programs(), open_kit(kits())
    except (CorralError, FirecrackerAbsent) as error:
        print(f"firecracker: {error}: no figures", file=sys.stderr)
        return ()
    home = Path(corral.__file__).parent
    with tempfile.TemporaryDirectory(prefix="bench-firecracker-") as folder:
        given = {
            **{f"src/corral/{part}": home / part for part in _PARTS},
            **{f"bench/{name}": Path(__file__).with_name(name) for name in ("__init__.py", "firecracker_inside.py")},
            "firecracker": programs,
            "kit": kit.directory,
            "image": root_in_image(Path(folder)),
        }
        status, said = nested_kvm.run(Path(folder), kit, _SCRIPT, given, counter_khz=counter_khz(), within_s=_WITHIN_S)
    if status:
        raise RuntimeError(said)
    figures = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return [
        beside("firecracker, emulated: boot to a sandbox", figures["boot"], "bare Firecracker's boot", figures["bare"]),
        beside("firecracker, emulated: a copy of a template", figures["clone"], "the same boot", figures["bare"]),
        beside("firecracker, emulated: warm exec of true", figures["exec"], "the same boot", figures["bare"]),
        beside("firecracker, emulated: freezing", figures["freeze"], "the same boot", figures["bare"]),
        beside("firecracker, emulated: going on from it", figures["thaw"], "the same boot", figures["bare"]),
    ]
