"""Two tenants and an administrator on one running Corral: nobody learns of what is another's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from corral.kernel.digest import Digest
from corral.testing.processes import CorralProcess, fixed_addresses, public_directory, wait_until, why_no_agent

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]

BLUE, RED, ADMIN = ("blue-token-0123456789", "red-token-0123456789", "admin-token-0123456789")
CONFIG = f"""
[access]
admin_tokens = ["{ADMIN}"]
[tenants.blue]
tokens = ["{BLUE}"]
secrets = {{ KEY = "literal:blue's secret" }}
[tenants.red]
tokens = ["{RED}"]
[worker]
slots = 4
"""
ABSENT = "task_00000000000000000000000000"


@dataclass
class Somebody:
    """A caller with a token."""

    url: str
    token: str

    def ask(self, verb: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, trust_env=False, timeout=30) as client:
            return client.request(verb, path, **more)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.ask("GET", path, params=query)
        assert answer.is_success, answer.text
        return answer.json()

    def submit(self, script: str, **more: Any) -> str:
        fields = {name: more.pop(name) for name in ("group", "dependencies", "retries") if name in more}
        answer = self.ask("POST", "/tasks", json={"payload": {"command": ["sh", "-c", script], **more}, **fields})
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def ended(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def look() -> bool:
            found.update(self.get(f"/tasks/{task_id}"))
            return found["phase"] in ("completed", "failed", "exception")

        wait_until(look, f"the end of {task_id}")
        return found


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        (home / "corral.toml").write_text(CONFIG)
        process = CorralProcess("up", home, *fixed_addresses())
        try:
            process.start()
            yield process
        finally:
            process.stop()


@pytest.fixture(scope="module")
def blue(up: CorralProcess) -> Somebody:
    return Somebody(up.url, BLUE)


@pytest.fixture(scope="module")
def red(up: CorralProcess) -> Somebody:
    return Somebody(up.url, RED)


@pytest.fixture(scope="module")
def admin(up: CorralProcess) -> Somebody:
    return Somebody(up.url, ADMIN)


@pytest.fixture(scope="module")
def blues(blue: Somebody) -> dict[str, Any]:
    """A task of blue's that left everything a task can leave."""
    script = "echo blue was here; echo made by blue > a.txt; mkdir d; cp a.txt d"
    kept = [{"path": "a.txt"}, {"path": "d", "type": "directory"}]
    task = blue.ended(blue.submit(script, group="blues", artifacts=kept))
    assert task["phase"] == "completed", task
    return task


def events(admin: Somebody, **wanted: str) -> list[dict[str, Any]]:
    found = admin.get("/security-events", limit=1000)["events"]
    return [event for event in found if all(event[name] == value for name, value in wanted.items())]


READS = (
    *("", "/runs", "/story", "/why", "/artifacts", "/artifacts?run=0", "/runs/0/log", "/runs/0/log?follow=1"),
    *("/runs/0/log/events", "/runs/0/artifacts/a.txt", "/runs/0/artifacts/d"),
)


@pytest.mark.parametrize("path", READS)
def test_what_is_read_of_another_tenants_task_is_what_is_read_of_none(
    red: Somebody, blue: Somebody, blues: dict[str, Any], path: str
) -> None:
    theirs, nobodys = (red.ask("GET", f"/tasks/{task_id}{path}") for task_id in (blues["id"], ABSENT))

    assert blue.ask("GET", f"/tasks/{blues['id']}{path}").is_success
    assert theirs.status_code == nobodys.status_code == 404
    assert anonymous(theirs, blues["id"]) == anonymous(nobodys, ABSENT)


@pytest.mark.parametrize("verb", ["cancel", "rerun"])
def test_another_tenants_task_cannot_be_steered(
    red: Somebody, blue: Somebody, blues: dict[str, Any], verb: str
) -> None:
    theirs, nobodys = (red.ask("POST", f"/tasks/{task_id}/{verb}") for task_id in (blues["id"], ABSENT))

    assert theirs.status_code == nobodys.status_code == 404
    assert anonymous(theirs, blues["id"]) == anonymous(nobodys, ABSENT)
    assert len(blue.get(f"/tasks/{blues['id']}")["runs"]) == 1


def anonymous(answer: httpx.Response, task_id: str) -> dict[str, Any]:
    problem = json.loads(answer.text.replace(task_id, "ID"))
    assert problem.pop("request_id")
    return dict(problem)


@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_every_try_is_a_security_event_that_says_who_and_what(
    red: Somebody, admin: Somebody, blues: dict[str, Any], verb: str
) -> None:
    def tried(task_id: str) -> str:
        needing = {"payload": {"command": ["true"]}, "dependencies": [task_id]}
        answer = red.ask("GET", f"/tasks/{task_id}") if verb == "GET" else red.ask("POST", "/tasks", json=needing)
        return answer.headers["x-request-id"]

    of_blue, of_nobody = tried(blues["id"]), tried(ABSENT)

    wait_until(lambda: bool(events(admin, request_id=of_blue)), "the event")
    event = events(admin, request_id=of_blue)[0]
    assert (event["tenant"], event["component"]) == ("red", "rest")
    assert event["actor"].startswith("red/")
    assert blues["id"] in event["reason"]
    assert events(admin, request_id=of_nobody) == []


def test_lists_groups_events_and_audit_rows_hold_only_ones_own(
    red: Somebody, blue: Somebody, blues: dict[str, Any]
) -> None:
    own = red.ended(red.submit("true", group="reds"))

    assert [task["id"] for task in red.get("/tasks", limit=100)["tasks"]] == [own["id"]]
    assert red.get("/tasks", group="blues")["tasks"] == []
    assert red.ask("POST", "/groups/blues/cancel").json()["tasks"] == []
    assert {row["task_id"] for row in red.get("/audit")["rows"]} == {own["id"]}
    assert red.get("/audit", task_id=blues["id"])["rows"] == []
    assert blues["id"] in {row["task_id"] for row in blue.get("/audit")["rows"]}
    assert told(red, after=0) == {own["id"]}
    assert own["id"] not in told(blue, after=0)


def told(somebody: Somebody, **query: Any) -> set[str]:
    """Whose stories the stream of events tells, up to its first pause."""
    headers = {"authorization": f"Bearer {somebody.token}"}
    found: set[str] = set()
    url = f"{somebody.url}/api/v1/events"
    try:
        with httpx.stream("GET", url, params=query, headers=headers, trust_env=False, timeout=2.0) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    found.add(json.loads(line.removeprefix("data: "))["task_id"])
    except httpx.ReadTimeout:
        pass
    return found


def test_another_tenants_blobs_are_missing(red: Somebody, blue: Somebody, blues: dict[str, Any]) -> None:
    found = blue.get(f"/tasks/{blues['id']}/artifacts")["artifacts"]
    digests = [each["artifact"]["digest"] for each in found] + [str(Digest.of(b"made by blue\n"))]

    for digest in digests:
        assert red.ask("GET", f"/blobs/{digest}").status_code == 404
    answer = red.ask("POST", "/blobs/find-missing", json={"digests": digests})
    assert sorted(answer.json()["digests"]) == sorted(set(digests))


def test_another_tenants_artifacts_blobs_and_tasks_cannot_be_used(
    red: Somebody, blue: Somebody, blues: dict[str, Any]
) -> None:
    digest = str(Digest.of(b"made by blue\n"))
    for task_id in (blues["id"], ABSENT):
        artifact = {"path": "x", "artifact": {"task": task_id, "name": "a.txt"}}
        task = red.ended(red.submit("cat x", inputs=[artifact], retries=0))
        assert task["phase"] != "completed"
        assert "made by blue" not in red.ask("GET", f"/tasks/{task['id']}/runs/0/log").text
        needing = {"payload": {"command": ["true"]}, "dependencies": [task_id]}
        refused = red.ask("POST", "/tasks", json=needing)
        assert refused.status_code == 422, refused.text
    stolen = red.ended(red.submit("cat x", inputs=[{"path": "x", "digest": digest}], retries=0))
    assert stolen["phase"] != "completed"


def test_caches_and_secrets_of_one_name_are_not_one(red: Somebody, blue: Somebody) -> None:
    cache = {"name": "deps", "path": "deps"}
    assert blue.ended(blue.submit("echo blues > deps/file", caches=[cache]))["phase"] == "completed"

    looked = red.ended(red.submit("ls deps; test ! -e deps/file", caches=[cache]))
    asked = red.ended(red.submit('echo "$KEY"', secrets={"KEY": "KEY"}, retries=0))

    assert looked["phase"] == "completed"
    assert asked["phase"] != "completed"
    assert "blue's secret" not in red.ask("GET", f"/tasks/{asked['id']}/runs/0/log").text


def test_only_an_administrator_sees_what_workers_run(red: Somebody, blue: Somebody, admin: Somebody) -> None:
    task_id = blue.submit("sleep 30")
    wait_until(lambda: any(task_id in str(each["runs"]) for each in admin.get("/workers")["workers"]), "the run")

    assert task_id not in red.ask("GET", "/workers").text
    assert "blue" not in red.ask("GET", "/workers").text
    assert blue.ask("POST", f"/tasks/{task_id}/cancel").is_success


def test_an_administrator_without_a_tenant_sees_the_fleet_and_has_no_tasks(
    admin: Somebody, blues: dict[str, Any]
) -> None:
    for verb, path in (
        *(("GET", "/tasks"), ("POST", "/tasks"), ("GET", f"/tasks/{blues['id']}"), ("GET", "/events")),
        *(("POST", f"/tasks/{blues['id']}/cancel"), ("GET", f"/blobs/{Digest.of(b'x')}")),
    ):
        answer = admin.ask(verb, path, json={} if verb == "POST" else None)
        assert answer.status_code == 422, answer.text
        assert "administrator's token belongs to no tenant" in answer.json()["detail"]
        assert "tenant's token" in answer.json()["cure"]
    assert [worker["state"] for worker in admin.get("/workers")["workers"]] == ["ready"]
    assert blues["id"] in {row["task_id"] for row in admin.get("/audit", limit=100)["rows"]}
    assert [row["tenant"] for row in admin.get("/audit", task_id=blues["id"])["rows"]] == ["blue"]


def test_a_wrong_and_a_missing_token_are_refused_in_the_same_words_and_recorded(
    up: CorralProcess, admin: Somebody
) -> None:
    wrong = Somebody(up.url, "nobodys-token-0123456789").ask("GET", "/tasks")
    missing = httpx.get(f"{up.url}/api/v1/tasks", trust_env=False, timeout=30)

    assert wrong.status_code == missing.status_code == 401
    assert wrong.json()["detail"] == missing.json()["detail"]
    for answer, kind in ((wrong, "token-unknown"), (missing, "token-missing")):
        request_id = answer.headers["x-request-id"]
        wait_until(lambda request_id=request_id: bool(events(admin, request_id=request_id)), "the event")  # type: ignore[misc]
        assert [event["kind"] for event in events(admin, request_id=request_id)] == [kind]


def test_workers_tokens_open_nothing_but_the_fleet(up: CorralProcess, admin: Somebody) -> None:
    worker = up.child("worker")
    assert worker is not None
    token = worker.environ()["CORRAL_JOIN__TOKEN"]

    assert Somebody(up.url, token).ask("GET", "/tasks").status_code == 401
