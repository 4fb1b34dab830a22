"""Tenants: configuration to principals, and everyone else hears the same sentence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.kernel.errors import InvalidSpec, NotFound, Refused, Unauthenticated
from corral.tenants.model import AccessConfig, AccessRefusal, Principal, TenantConfig
from corral.tenants.reading import is_tenant_name
from corral.tenants.service import Tenants
from corral.tenants.tokens import configured_hash, find_hash, hash_token, new_bearer_token

ACME = "acme-token-0123456789"
ADMIN = "admin-token-0123456789"
WORKER = "worker-token-0123456789"
NOBODY = AccessConfig()
STRANGERS = [None, "", "wrong", ACME[:-1], ACME + "x", ACME.upper(), WORKER, "\ud800", "x" * 10**6]


def tenants(
    configured: Mapping[str, TenantConfig] | None = None,
    access: AccessConfig = NOBODY,
    *,
    refused: Callable[[AccessRefusal], None] = lambda _: None,
    env: Mapping[str, str] | None = None,
) -> Tenants:
    return Tenants(configured or {}, access, refused=refused, env=env or {})


def mistakes(configured: Mapping[str, TenantConfig], access: AccessConfig = NOBODY) -> tuple[str, ...]:
    with pytest.raises(InvalidSpec) as refused:
        tenants(configured, access)
    return refused.value.mistakes


def configured_acme(token: str = ACME, **terms: Any) -> dict[str, TenantConfig]:
    return {"acme": msgspec.structs.replace(TenantConfig(tokens=(token,)), **terms)}


def test_without_configuration_this_machine_is_the_default_tenant_and_administrator() -> None:
    principal = tenants().authenticate(None, remote_is_loopback=True)

    assert (principal.tenant, principal.admin, principal.may("anything:at-all")) == ("default", True, True)


def test_without_configuration_another_machine_is_refused() -> None:
    told: list[AccessRefusal] = []

    with pytest.raises(Unauthenticated):
        tenants(refused=told.append).authenticate(ACME, remote_is_loopback=False, request_id="req_1")

    assert [(each.kind, each.request_id) for each in told] == [("token-missing", "req_1")]


@pytest.mark.parametrize("configured_as", [str, hash_token], ids=["in the clear", "as a hash"])
def test_a_tenants_token_gives_its_principal(configured_as: Callable[[str], str]) -> None:
    ours = tenants(configured_acme(configured_as(ACME), scopes=("tasks:*", "blobs:read")))

    principal = ours.authenticate(ACME, remote_is_loopback=False)

    assert (principal.tenant, principal.admin) == ("acme", False)
    assert principal.name.startswith("acme/") and ACME not in principal.name


def test_a_hash_itself_is_no_token() -> None:
    with pytest.raises(Unauthenticated):
        tenants(configured_acme(hash_token(ACME))).authenticate(hash_token(ACME), remote_is_loopback=True)


@pytest.mark.parametrize("bearer", STRANGERS, ids=range(len(STRANGERS)))
def test_every_other_token_is_refused_in_the_same_words_and_told_once(bearer: str | None) -> None:
    told: list[AccessRefusal] = []
    ours = tenants(configured_acme(), AccessConfig(worker_tokens=(WORKER,)), refused=told.append)

    with pytest.raises(Unauthenticated) as refused:
        ours.authenticate(bearer, remote_is_loopback=True)

    assert (refused.value.message, refused.value.context) == ("a valid token is needed", {})
    assert [each.kind for each in told] == ["token-unknown" if bearer else "token-missing"]
    assert not bearer or bearer not in repr(told)


def test_an_administrators_token_may_everything() -> None:
    principal = tenants(configured_acme(), AccessConfig(admin_tokens=(ADMIN,))).authenticate(
        ADMIN, remote_is_loopback=False
    )

    assert (principal.admin, principal.tenant, principal.may("fleet:drain")) == (True, "", True)


def test_a_workers_token_opens_the_fleet_and_nothing_else() -> None:
    told: list[AccessRefusal] = []
    ours = tenants(configured_acme(), AccessConfig(worker_tokens=(WORKER,)), refused=told.append)

    assert ours.authenticate_worker(WORKER).startswith("worker/")
    for stranger in (ACME, "", "wrong"):
        with pytest.raises(Unauthenticated):
            ours.authenticate_worker(stranger, actor="wrk_1")
    assert [(each.kind, each.actor) for each in told] == [("worker-token-unknown", "wrk_1")] * 3


def test_a_scope_with_a_star_covers_what_begins_like_it() -> None:
    principal = Principal(name="acme/1", tenant="acme", scopes=("tasks:*", "blobs:read"))

    asked = ("tasks:submit", "tasks:", "tasks", "blobs:read", "blobs:read2")
    assert [scope for scope in asked if principal.may(scope)] == ["tasks:submit", "tasks:", "blobs:read"]
    with pytest.raises(Refused, match='"blobs:write"'):
        principal.require("blobs:write")


def test_no_scope_covers_nothing() -> None:
    assert not Principal(name="a", tenant="a", scopes=()).may("")


def test_an_address_that_others_reach_needs_tokens() -> None:
    with pytest.raises(InvalidSpec, match=r"0\.0\.0\.0:7070 can be reached") as refused:
        tenants().check_listen("0.0.0.0:7070", is_loopback=False)
    assert "corral token new" in refused.value.cure

    tenants().check_listen("127.0.0.1:7070", is_loopback=True)
    tenants(configured_acme()).check_listen("0.0.0.0:7070", is_loopback=False)


@pytest.mark.parametrize("name", ["a", "0", "acme", "a-b-c", "x" * 63])
def test_names_that_a_tenant_may_have(name: str) -> None:
    assert is_tenant_name(name)


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "..", "a/b", "a b", "ä", "x" * 64, "a\n", "a\0"])
def test_names_that_no_tenant_may_have(name: str) -> None:
    assert not is_tenant_name(name)
    assert any("is not a name" in each for each in mistakes({name: TenantConfig(tokens=(ACME,))}))


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({"max_pending": 0}, "tenants.acme.max_pending: must be at least 1, not 0"),
        ({"max_running": -5}, "tenants.acme.max_running: must be at least 1, not -5"),
        ({"weight": 0.0}, "tenants.acme.weight: must be between 0.001 and 1000, not 0"),
        ({"weight": float("nan")}, "tenants.acme.weight: must be between 0.001 and 1000, not nan"),
        ({"blob_bytes": -1}, "tenants.acme.blob_bytes: must not be negative, not -1"),
        ({"scopes": ("TASKS",)}, 'tenants.acme.scopes: "TASKS" is not a scope; write for example "tasks:*"'),
        ({"scopes": ("",)}, 'tenants.acme.scopes: "" is not a scope; write for example "tasks:*"'),
        ({"secrets": {"1x": "literal:a"}}, 'tenants.acme.secrets: "1x" is not a name; use letters, digits and "_"'),
        ({"secrets": {"A": "hunter2"}}, 'tenants.acme.secrets.A: write "env:NAME", "file:PATH" or "literal:TEXT"'),
        ({"secrets": {"A": "literal:"}}, "tenants.acme.secrets.A: the secret is empty"),
        ({"secrets": {"A": "env:ABSENT"}}, 'tenants.acme.secrets.A: the environment variable "ABSENT" is not set'),
        ({"secrets": {"A": "file:x"}}, 'tenants.acme.secrets.A: "x" must be an absolute path'),
        (
            {"secrets": {"A": "file:/absent"}},
            'tenants.acme.secrets.A: "/absent" cannot be read: No such file or directory',
        ),
        ({"secrets": {"A": "literal:" + "x" * 70_000}}, "tenants.acme.secrets.A: a secret has at most 64 KiB"),
        (
            {"tokens": ("short",)},
            "tenants.acme.tokens[0]: a token has 16 to 512 characters; make one with `corral token new`",
        ),
        (
            {"tokens": ("with a space in it",)},
            "tenants.acme.tokens[0]: a token has no spaces, control characters or letters beyond ASCII",
        ),
        (
            {"tokens": ("sha256:zz",)},
            'tenants.acme.tokens[0]: a token\'s hash is "sha256:" and 64 lower-case hex digits',
        ),
        (
            {"tokens": ()},
            "tenants.acme.tokens: there is none, and every tenant needs one, also beside a certificate; "
            "make one with `corral token new`",
        ),
    ],
)
def test_each_mistake_is_one_clear_sentence(terms: dict[str, Any], sentence: str) -> None:
    assert mistakes(configured_acme(**terms)) == (sentence,)


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes(configured_acme(max_pending=0, max_running=0, weight=-1.0), AccessConfig(admin_tokens=("x",)))

    assert len(found) == 4


def test_one_token_names_one_caller() -> None:
    found = mistakes(configured_acme(), AccessConfig(admin_tokens=(hash_token(ACME),)))

    assert found == (
        "access.admin_tokens[0]: this token is in tenants.acme.tokens already; one token names one caller",
    )


def test_a_mistaken_secret_does_not_show_its_text() -> None:
    assert "hunter2" not in repr(mistakes(configured_acme(secrets={"A": "hunter2"})))


def test_secrets_come_from_the_environment_a_file_or_the_text_itself(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file\n")
    references = {"A": "env:FROM", "B": f"file:{tmp_path}/key", "C": "literal:env:not"}

    ours = tenants(configured_acme(secrets=references), env={"FROM": "from the environment"})

    assert ours.secrets("acme", ["A", "B", "C", "absent"]) == {
        "A": "from the environment",
        "B": "from the file",
        "C": "env:not",
    }
    assert ours.secrets("umbrella", ["A"]) == {}
    assert "from the" not in repr(ours.get("acme"))


def test_limits_reach_the_tenant() -> None:
    acme = tenants(configured_acme(max_pending=5, max_running=2, weight=3.0, blob_bytes=10)).get("acme")

    assert (acme.max_pending, acme.max_running, acme.weight, acme.blob_bytes) == (5, 2, 3.0, 10)


def test_an_unknown_tenant_is_not_found() -> None:
    with pytest.raises(NotFound):
        tenants().get("acme")


def test_the_default_tenant_may_have_limits_without_any_token() -> None:
    ours = tenants({"default": TenantConfig(max_pending=7)})

    assert ours.get("default").max_pending == 7
    assert not ours.tokens_needed()
    assert list(ours.names()) == ["default"]


def test_a_new_token_is_long_random_and_fit_for_a_configuration() -> None:
    made = {new_bearer_token() for _ in range(100)}

    assert len(made) == 100
    for token in made:
        assert token.startswith("corral_") and len(token) == 59
        assert configured_hash(token) == configured_hash(hash_token(token)) == hash_token(token)


def test_the_comparison_looks_at_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(presented: bytes, known: bytes) -> bool:
        compared.append(known)
        return presented == known

    monkeypatch.setattr("corral.tenants.tokens.hmac.compare_digest", compare)
    known = [hash_token(str(number)) for number in range(5)]

    assert find_hash("0", known) == known[0]
    assert len(compared) == 5
