"""The REST door of a real scheduler with two tenants and an administrator."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from corral.client import Corral, TaskDefinition
from corral.client.model import Problem
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, Unauthenticated

pytestmark = pytest.mark.timeout(120)

BLUE, RED, ADMIN = ("blue-token-0123456789", "red-token-0123456789", "admin-token-0123456789")
READER = "reader-token-0123456789"
CONFIG = f"""
[scheduler.http_limits]
body_bytes = "256KiB"
wait_s = "2s"
batch_tasks = 10
[access]
admin_tokens = ["{ADMIN}"]
[tenants.blue]
tokens = ["{BLUE}"]
max_pending = 20
[tenants.red]
tokens = ["{RED}"]
[tenants.reader]
tokens = ["{READER}"]
scopes = ["tasks:read"]
"""
OK = {"payload": {"command": ["true"]}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("rest")
    (directory / "corral.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "corral", "scheduler", "--data-dir", str(directory / "data")]
    process = subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        match = re.match(r"ready http=(\S+)", process.stdout.readline())
        assert match
        yield match[1]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def blue(url: str) -> Iterator[httpx.Client]:
    with client_of(url, BLUE) as client:
        yield client


def client_of(url: str, token: str = "") -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=f"{url}/api/v1", headers=headers, trust_env=False, timeout=20)


def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert set(problem) == set(Problem.__struct_fields__)
    assert (problem["status"], problem["title"], problem["code"]) == (status, HTTPStatus(status).phrase, code)
    assert problem["request_id"]
    return problem


def test_a_task_is_accepted_shown_and_listed(blue: httpx.Client) -> None:
    created = blue.post("/tasks", json={**OK, "name": "one"})

    assert created.status_code == 201
    task = created.json()
    assert (task["phase"], task["tenant"], task["name"]) == ("pending", "blue", "one")
    assert blue.get(f"/tasks/{task['id']}").json() == task
    assert [each["id"] for each in blue.get("/tasks", params={"name": "one"}).json()["tasks"]] == [task["id"]]


def test_a_batch_is_accepted_whole_or_not_at_all(blue: httpx.Client) -> None:
    accepted = blue.post("/tasks", json={"tasks": [{**OK, "group": "batch"}, {**OK, "group": "batch"}]})
    refused = blue.post("/tasks", json={"tasks": [{**OK, "group": "half"}, {"group": "half"}]})

    assert len(accepted.json()["tasks"]) == 2
    problem = problem_of(refused, 422, "invalid-spec")
    assert problem["mistakes"] == ["tasks[1].payload: is required"]
    assert blue.get("/tasks", params={"group": "half"}).json()["tasks"] == []


def test_a_repeated_idempotency_key_queues_nothing_new(blue: httpx.Client) -> None:
    headers = {"Idempotency-Key": "again"}

    first = blue.post("/tasks", json=OK, headers=headers).json()
    second = blue.post("/tasks", json=OK, headers=headers).json()
    other = blue.post("/tasks", json={**OK, "name": "other"}, headers=headers)

    assert first["id"] == second["id"]
    problem_of(other, 409, "conflict")


def test_all_mistakes_of_a_task_are_listed_at_once(blue: httpx.Client) -> None:
    problem = problem_of(
        blue.post("/tasks", json={"payload": 5, "priorty": "low", "retries": "many", "deadline_s": "soon"}),
        422,
        "invalid-spec",
    )

    assert len(problem["mistakes"]) == 4
    assert 'priorty: there is no such key; did you mean "priority"?' in problem["mistakes"]


def test_mistakes_in_the_payload_are_found_at_submission(blue: httpx.Client) -> None:
    problem = problem_of(blue.post("/tasks", json={"payload": {"comand": ["x"]}}), 422, "invalid-spec")

    assert any("comand" in mistake and "command" in mistake for mistake in problem["mistakes"])


NO_JSON = [b"{", b"\xff\xfe", b'{"digests": ["\xff"]}', b'{"digests": ' + b"[" * 100_000, b'{"digests": [1e999]}']


@pytest.mark.parametrize("body", [b"", *NO_JSON, b"[]", b"3", b'{"tasks": []}', b'{"tasks": 3}'])
def test_a_body_that_is_no_submission_is_a_problem(blue: httpx.Client, body: bytes) -> None:
    response = blue.post("/tasks", content=body)

    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("body", NO_JSON)
def test_a_body_that_is_no_json_is_the_callers_mistake_wherever_it_is_sent(blue: httpx.Client, body: bytes) -> None:
    problem = problem_of(blue.post("/blobs/find-missing", content=body), 400, "bad-request")

    assert problem["detail"].startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        ({"digest": []}, "digest: is not a known key"),
        ({}, "digests: is required"),
        ({"digests": 3}, "digests: expected a list, got a whole number"),
        ({"digests": ["x", 3]}, "digests[1]: expected a string, got a whole number"),
    ],
)
def test_a_mistake_in_a_body_is_named_by_its_key(blue: httpx.Client, body: object, mistake: str) -> None:
    problem = problem_of(blue.post("/blobs/find-missing", json=body), 422, "invalid-spec")

    assert problem["mistakes"] == [mistake]


def test_a_body_over_the_limit_is_refused_by_name(blue: httpx.Client) -> None:
    response = blue.post("/tasks", content=b'{"name": "' + b"x" * 300_000 + b'"}')

    assert "body_bytes" in problem_of(response, 413, "too-large")["detail"]


def test_too_many_waiting_tasks_are_refused_and_may_come_back_later(url: str) -> None:
    with client_of(url, BLUE) as blue:
        for _ in range(3):
            response = blue.post("/tasks", json={"tasks": [OK] * 10})
            if response.is_error:
                break

    problem = problem_of(response, 429, "queue-full")
    assert problem["retryable"]
    assert response.headers["retry-after"]


def test_nothing_is_answered_without_a_valid_token(url: str) -> None:
    for token in ("", "wrong-token-0123456789"):
        with client_of(url, token) as stranger:
            response = stranger.get("/tasks")
            problem = problem_of(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
            assert problem["detail"] == "a valid token is needed"


def test_another_tenants_task_looks_like_none(url: str, blue: httpx.Client) -> None:
    listed = blue.get("/tasks").json()["tasks"]
    task_id = listed[0]["id"]

    with client_of(url, RED) as red:
        for path in ("", "/runs", "/story", "/why", "/artifacts", "/runs/0/log"):
            problem_of(red.get(f"/tasks/{task_id}{path}"), 404, "not-found")
        problem_of(red.post(f"/tasks/{task_id}/cancel"), 404, "not-found")
        assert red.get("/tasks").json()["tasks"] == []


def test_a_scope_that_only_reads_cannot_write(url: str) -> None:
    with client_of(url, READER) as reader:
        assert reader.get("/tasks").status_code == 200
        problem_of(reader.post("/tasks", json=OK), 403, "refused")


def test_only_an_administrator_sees_security_events_and_steers_workers(url: str, blue: httpx.Client) -> None:
    problem_of(blue.get("/security-events"), 403, "refused")
    problem_of(blue.post("/workers/wrk_1/drain"), 403, "refused")
    with client_of(url, ADMIN) as admin:
        problem_of(admin.post("/workers/wrk_1/drain"), 404, "not-found")
        assert admin.get("/security-events").status_code == 200


def test_cancel_and_rerun(blue: httpx.Client) -> None:
    task_id = blue.get("/tasks", params={"phase": "pending"}).json()["tasks"][0]["id"]

    canceled = blue.post(f"/tasks/{task_id}/cancel").json()
    again = blue.post(f"/tasks/{task_id}/rerun").json()

    assert (canceled["phase"], canceled["reason"]) == ("exception", "canceled")
    assert (again["phase"], len(again["runs"])) == ("pending", 2)
    problem_of(blue.post(f"/tasks/{task_id}/rerun"), 409, "conflict")


def test_a_wait_ends_when_its_time_is_over(blue: httpx.Client) -> None:
    task = blue.get("/tasks", params={"phase": "pending"}).json()["tasks"][0]
    known: dict[str, str | int | float] = {"known_phase": "pending", "known_run": len(task["runs"]) - 1, "wait_s": 0.3}

    assert blue.get(f"/tasks/{task['id']}", params=known).json()["phase"] == "pending"


def test_pages_follow_each_other_without_gaps(blue: httpx.Client) -> None:
    everything = [each["id"] for each in blue.get("/tasks", params={"limit": 1000}).json()["tasks"]]
    pages: list[str] = []
    after = ""
    while True:
        page = blue.get("/tasks", params={"limit": 3, "after": after}).json()
        pages += [each["id"] for each in page["tasks"]]
        after = page.get("next", "")
        if not after:
            break

    assert pages == everything == sorted(everything, reverse=True)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 10_000}, {"limit": "x"}, {"phase": "odd"}, {"after": "yesterday"}]
)
def test_an_absurd_query_is_a_problem(blue: httpx.Client, query: dict[str, Any]) -> None:
    problem_of(blue.get("/tasks", params=query), 422, "invalid-spec")


def test_a_misspelt_parameter_is_named_with_the_right_one(blue: httpx.Client) -> None:
    problem = problem_of(blue.get("/tasks", params={"limt": 3, "grup": "x", "name": "y"}), 422, "invalid-spec")

    assert problem["mistakes"] == [
        'limt: there is no such key; did you mean "limit"?',
        'grup: there is no such key; did you mean "group"?',
    ]


def test_unknown_paths_and_methods_are_problems(blue: httpx.Client) -> None:
    problem_of(blue.get("/nothing"), 404, "not-found")
    problem_of(blue.delete("/tasks"), 405, "bad-request")


@pytest.mark.parametrize("digest", ["nonsense", f"b3:{'0' * 64}-99999999999999"])
async def test_a_refusal_reaches_whoever_still_sends(url: str, digest: str) -> None:
    async def slices() -> AsyncIterator[bytes]:
        for _ in range(512):
            yield bytes(65_536)

    async with httpx.AsyncClient(base_url=f"{url}/api/v1", trust_env=False, timeout=20) as client:
        client.headers["authorization"] = f"Bearer {BLUE}"
        refused = await client.put(f"/blobs/{digest}", content=slices(), headers={"content-length": str(32 * 1024**2)})

    problem_of(refused, *((422, "invalid-spec") if digest == "nonsense" else (413, "too-large")))


async def test_who_sends_a_blob_that_is_there_already_can_send_it_to_the_end(url: str) -> None:
    content = bytes(32 * 1024**2)
    where = f"/blobs/{Digest.of(content)}"

    async with httpx.AsyncClient(base_url=f"{url}/api/v1", trust_env=False, timeout=20) as client:
        client.headers["authorization"] = f"Bearer {BLUE}"
        assert [(await client.put(where, content=content)).status_code for _ in range(3)] == [201] * 3


def test_blobs_are_verified_and_read_in_part(blue: httpx.Client) -> None:
    content = b"some bytes" * 1000
    digest = str(Digest.of(content))
    wrong = str(Digest.of(b"x" * len(content)))

    assert blue.post("/blobs/find-missing", json={"digests": [digest]}).json() == {"digests": [digest]}
    assert blue.put(f"/blobs/{digest}", content=content).status_code == 201
    assert blue.post("/blobs/find-missing", json={"digests": [digest]}).json() == {"digests": []}
    assert blue.get(f"/blobs/{digest}").content == content
    assert blue.get(f"/blobs/{digest}", params={"offset": 5, "length": 10}).content == content[5:15]
    problem_of(blue.put(f"/blobs/{wrong}", content=content), 422, "invalid-spec")
    problem_of(blue.get(f"/blobs/{wrong}"), 404, "not-found")
    problem_of(blue.get("/blobs/nonsense"), 422, "invalid-spec")


def test_blobs_of_another_tenant_are_not_there(url: str, blue: httpx.Client) -> None:
    content = b"blue's own"
    digest = str(Digest.of(content))
    blue.put(f"/blobs/{digest}", content=content)

    with client_of(url, RED) as red:
        problem_of(red.get(f"/blobs/{digest}"), 404, "not-found")


def test_the_schema_of_payloads_names_every_key_and_refuses_others(blue: httpx.Client) -> None:
    schema = blue.get("/payload-schema").json()

    assert {"command", "inputs", "env", "artifacts", "caches", "max_run_time"} <= set(schema["properties"])
    assert (schema["required"], schema["additionalProperties"]) == (["command"], False)


def test_the_schema_describes_every_path(url: str) -> None:
    schema = httpx.get(f"{url}/schema", trust_env=False).json()

    assert schema["openapi"].startswith("3.1")
    for path in ("/api/v1/tasks", "/api/v1/tasks/{task_id}/runs/{run}/log", "/api/v1/blobs/{digest}"):
        assert path in schema["paths"], sorted(schema["paths"])
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', httpx.get(f"{url}/schema", trust_env=False).text))
    assert references <= set(schema["components"]["schemas"])


def test_health_needs_no_token_and_readiness_needs_a_worker(url: str) -> None:
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    assert httpx.get(f"{url}/ready", trust_env=False).status_code == 503
    assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401


def test_metrics_count_tasks_by_phase(url: str) -> None:
    response = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {ADMIN}"}, trust_env=False)

    assert re.search(r'^corral_tasks\{tenant="blue",phase="pending"\} \d+$', response.text, re.MULTILINE)


def test_events_tell_what_happens_and_can_be_taken_up_again(blue: httpx.Client) -> None:
    task_id = blue.get("/tasks", params={"phase": "pending"}).json()["tasks"][-1]["id"]

    first = read_events(blue, {"task_id": task_id, "after": 0}, count=1)
    blue.post(f"/tasks/{task_id}/cancel")
    rest = read_events(blue, {"task_id": task_id}, count=1, last_id=first[0]["id"])

    assert first[0]["event"] == "submitted"
    assert rest[0]["event"] != "submitted"
    assert int(rest[0]["id"]) > int(first[0]["id"])


async def test_the_client_maps_problems_back_to_errors(url: str) -> None:
    async with Corral(url, BLUE) as corral:
        with pytest.raises(InvalidSpec) as caught:
            await corral.tasks.submit(TaskDefinition(payload={"comand": []}))
        with pytest.raises(NotFound):
            await corral.tasks.get("task_00000000000000000000000000")
        assert len(caught.value.mistakes) >= 2
    async with Corral(url, "no-such-token-0123") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.tasks.page()


async def test_the_client_uploads_only_what_is_missing(url: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"a" * 100_000)
    (tmp_path / "sub" / "b").write_bytes(b"b")
    sent: list[int] = []

    async with Corral(url, BLUE) as corral:
        first = await corral.uploads.directory(tmp_path, on_progress=lambda progress: sent.append(progress.blobs_sent))
        again: list[int] = []
        second = await corral.uploads.directory(tmp_path, on_progress=lambda progress: again.append(1))

    assert first == second
    assert max(sent) >= 2
    assert len(again) <= 2  # only the top directory is offered again


def read_events(client: httpx.Client, query: dict[str, Any], *, count: int, last_id: str = "") -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    headers = {"last-event-id": last_id} if last_id else {}
    with client.stream("GET", "/events", params=query, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith(":"):
                continue
            if not line and event:
                found.append(event)
                event = {}
                if len(found) == count:
                    return found
            elif line:
                name, _, value = line.partition(": ")
                event[name] = value
    return found
