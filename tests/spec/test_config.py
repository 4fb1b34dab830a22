"""The configuration tree: sources, precedence, units, and every mistake at once."""

from pathlib import Path

import pytest

from corral.app.config import config_as_toml, load_config
from corral.app.config_docs import reference
from corral.app.config_sections import Config
from corral.kernel.errors import InvalidSpec

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def load(
    tmp_path: Path, toml: str = "", env: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> Config:
    file = tmp_path / "corral.toml"
    file.write_text(toml, encoding="utf-8")
    return load_config(file=file, env=env or {}, flags=flags)


def mistakes_of(tmp_path: Path, toml: str = "", env: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidSpec) as caught:
        load(tmp_path, toml, env)
    return caught.value.mistakes


def test_nothing_configured_gives_the_defaults_on_loopback(tmp_path: Path) -> None:
    config = load_config(env={}, directory=tmp_path)

    assert config == Config()
    assert config.scheduler.http == "127.0.0.1:7070"


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    toml = '[scheduler]\nhttp = "127.0.0.1:1"\ngrpc = "127.0.0.1:2"\n[worker]\nslots = 3\n'
    env = {"CORRAL_SCHEDULER__HTTP": "127.0.0.1:11", "CORRAL_SCHEDULER__GRPC": "127.0.0.1:12"}

    config = load(tmp_path, toml, env, {"scheduler.http": "127.0.0.1:21", "scheduler.grpc": None})

    assert (config.scheduler.http, config.scheduler.grpc, config.worker.slots) == ("127.0.0.1:21", "127.0.0.1:12", 3)


def test_sizes_and_durations_are_read_by_the_name_of_their_key(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[supervisor]\nready_s = "2m"\n[scheduler.http_limits]\nbody_bytes = "1MiB"\n[logs]\nlog_bytes_max = "2KiB"',
    )

    assert config.supervisor.ready_s == 120.0
    assert config.scheduler.http_limits.body_bytes == 1024**2
    assert config.logs.log_bytes_max == 2048


def test_an_unknown_key_is_refused_with_the_nearest_right_one(tmp_path: Path) -> None:
    assert mistakes_of(tmp_path, "[worker]\nslotz = 3\n") == (
        'worker.slotz: is not a known key; did you mean "slots"?',
    )


def test_an_unknown_variable_is_refused_with_the_nearest_right_key(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(tmp_path, env={"CORRAL_SCHEDULER__HTPP": "x"})

    assert mistake.startswith("environment variable CORRAL_SCHEDULER__HTPP:")
    assert '"http"' in mistake


def test_variables_of_the_client_are_no_configuration(tmp_path: Path) -> None:
    assert load(tmp_path, env={"CORRAL_URL": "http://x", "CORRAL_TOKEN": "t", "CORRAL_DEBUG": "1"}) == Config()


def test_all_mistakes_of_all_sources_are_listed_at_once(tmp_path: Path) -> None:
    toml = (
        '[worker]\nslots = "many"\nslotz = 1\n'
        '[supervisor]\nready_s = "soon"\n'
        '[scheduler.http_limits]\nbody_bytes = "-1"\n'
    )

    found = mistakes_of(tmp_path, toml, {"CORRAL_NOPE": "1"})

    places = ("CORRAL_NOPE", "worker.slotz", "worker.slots", "supervisor.ready_s", "http_limits.body_bytes")
    assert all(any(place in mistake for mistake in found) for place in places), found
    assert len(found) == len(places)


def test_a_rule_of_a_section_names_the_section(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(tmp_path, "[worker]\nslots = 0\n")

    assert mistake == "worker: slots must be between 1 and 1000"


@pytest.mark.parametrize("address", ["7070", "localhost:", ":7070", "host:port", "127.0.0.1:70000"])
def test_an_address_must_have_a_host_and_a_port(tmp_path: Path, address: str) -> None:
    (mistake,) = mistakes_of(tmp_path, env={"CORRAL_SCHEDULER__HTTP": address})

    assert "scheduler: http:" in mistake


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, '[scheduler]\nhttp = "127.0.0.1:9"\ngrpc = "127.0.0.1:9"\n[pool]\nmax = 1\n')

    assert len(found) == 2
    assert "need two ports" in found[0]
    assert "worker.slots" in found[1]


def test_a_section_given_as_a_value_is_refused(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(tmp_path, "worker = 3\n")

    assert mistake == "worker: is a section with keys of its own, not a single value"


def test_tenants_are_tables_of_their_own(tmp_path: Path) -> None:
    config = load(tmp_path, '[tenants.blue]\ntokens = ["sha256:abc"]\nblob_bytes = "1GiB"\n')

    assert config.tenants["blue"].blob_bytes == 1024**3


def test_lists_in_the_environment_are_separated_by_commas(tmp_path: Path) -> None:
    config = load(tmp_path, env={"CORRAL_ACCESS__WORKER_TOKENS": "one, two"})

    assert config.access.worker_tokens == ("one", "two")


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"corral\.toml: is not TOML"):
        load(tmp_path, "worker = [")
    with pytest.raises(InvalidSpec, match="absent\\.toml: cannot be read"):
        load_config(file=tmp_path / "absent.toml", env={})


SECRETS = """
scheduler.database = "postgresql://corral:hush-database@db.example/corral"
worker.slots = 3
join.token = "hush-join-0123456789"
tls = { certificate = "/etc/corral/tls.pem", key = "/etc/corral/tls.key" }
[access]
worker_tokens = ["hush-worker-0123456789", "hush-worker-9876543210"]
admin_tokens = ["hush-admin-0123456789"]
[tenants.acme]
tokens = ["hush-tenant-0123456789"]
secrets = { deploy = "literal:hush-secret" }
[[blobs.tiers]]
kind = "object-store"
url = "s3://bucket"
options = { region = "eu", access_key_id = "hush-id", secret_access_key = "hush-key", session_token = "hush-session" }
[compile.remote]
token = "hush-compile-0123456789"
"""


def test_what_is_shown_can_be_read_back_and_hides_secrets(tmp_path: Path) -> None:
    shown = config_as_toml(load(tmp_path, SECRETS))

    assert "hush" not in shown
    again = load(tmp_path, shown)
    assert (again.worker.slots, again.tls.key) == (3, "/etc/corral/tls.key")
    assert again.scheduler.database == "postgresql://corral:***@db.example/corral"
    assert len(again.access.worker_tokens) == 2


def test_the_reference_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "stale: run `python -m corral.app.config_docs > docs/reference/configuration.md`"
    )
