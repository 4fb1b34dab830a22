"""The page for operators of hpcc names a place for every setting of its worker, and the defaults that the code has."""

import re
from pathlib import Path
from typing import Any

from corral.app.config_docs import default_cell
from corral.app.config_sections import Config
from corral.blobs.config import DiskTierConfig, ObjectStoreTierConfig

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "coming-from-hpcc.md"
TIERS = {"disk": DiskTierConfig(), "object-store": ObjectStoreTierConfig(url="s3://bucket")}
SETTINGS = """
listen metrics_listen worker_id public_addr paranoid
tls.cert_file tls.cert_ref tls.key_file tls.key_ref
scheduler.url scheduler.worker_token scheduler.ca_file
runtime.handler
runtime.firecracker.firecracker_bin runtime.firecracker.jailer_bin runtime.firecracker.kernel_image
runtime.firecracker.rootfs_dir runtime.firecracker.run_dir runtime.firecracker.uid runtime.firecracker.gid
runtime.firecracker.boot_args
runtime.hcsshim.address runtime.hcsshim.namespace runtime.hcsshim.run_dir runtime.hcsshim.runtime
runtime.hcsshim.snapshotter runtime.hcsshim.isolation
vm.memory vm.vcpus vm.idle_timeout vm.session_timeout
pool.max_active
image.pause_linux_amd64 image.pause_linux_arm64 image.pause_windows_amd64
image.agent_linux_amd64 image.agent_linux_arm64 image.agent_windows_amd64
image.advertised_digests image.idle_timeout
cache.type cache.location cache.max_size cache.bucket cache.region cache.endpoint cache.access_key cache.secret_key
cache.auto_create
""".split()


def rows() -> list[tuple[list[str], str, str]]:
    """(their settings, our key or "", the default that the page shows)."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 5:
            found.append((re.findall(r"`([^`]+)`", cells[0]), cells[2].strip("`").replace("nothing", ""), cells[3]))
    return found


def default_of(key: str) -> str:
    """The cell for a key's default. Raises AttributeError when there is no such key."""
    if key == "blobs.tiers":
        return f"one `{Config().blobs.tiers[0].__struct_config__.tag}`"
    value: Any = Config()
    for part in key.split("."):
        value = TIERS[part] if isinstance(value, tuple) else getattr(value, part)
    name = key.rpartition(".")[2]
    return "required" if name == "url" and "object-store" in key else default_cell(name, value)


def test_every_setting_of_the_older_worker_has_its_row() -> None:
    assert sorted(name for names, _, _ in rows() for name in names) == sorted(SETTINGS)


def test_our_keys_are_there_and_have_the_defaults_that_the_page_shows() -> None:
    for names, key, shown in rows():
        assert shown == (default_of(key) if key else ""), names
