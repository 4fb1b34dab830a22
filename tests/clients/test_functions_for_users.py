"""Functions as people use them: the command line, requests at the front, and clients of the older interface."""

import asyncio
import contextlib
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from corral.blobs.content import pieces_of
from corral.cli.main import _run as command_line
from corral.client import Corral
from corral.kernel.digest import Digest
from corral.testing.function_load import printing
from corral.testing.images import build, debian_registry, why_no_registry
from corral.testing.processes import CorralProcess, clean_environment, public_directory, wait_until, why_no_agent

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]
OURS, RED = "default-token-0123456789", "red-token-0123456789"
NOT_WASM = b"#!/bin/sh\necho hello\n"


class Registry(BaseHTTPRequestHandler):
    """Serves ``/hello.wasm``; sends everybody else away."""

    def do_GET(self) -> None:
        if self.path == "/hello.wasm":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(printing("fetched"))
        else:
            self.send_response(302)
            self.send_header("location", "/hello.wasm")
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Here:
    """A running Corral with two tenants, and programs to deploy."""

    up: CorralProcess
    programs: Path
    registry: str

    def run(self, *arguments: str, token: str = OURS, status: int = 0) -> str:
        """A command line, in this process; everything it printed."""
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        environment = {**clean_environment(), "CORRAL_URL": self.up.url, "CORRAL_TOKEN": token}
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            contextlib.chdir(self.programs),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            found = command_line(list(arguments))
        printed.seek(0)
        said = printed.read()
        assert found == status, f"{arguments}: {found}\n{said}"
        return said

    def ask(self, method: str, path: str, token: str = OURS, **more: Any) -> httpx.Response:
        """A request to the scheduler."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        headers.update(more.pop("headers", {}))
        return httpx.request(method, self.up.url + path, headers=headers, trust_env=False, timeout=30, **more)

    def call(self, path: str) -> tuple[int, str]:
        """A request to the front."""
        front = self.ask("GET", "/api/v1/functions").json()["functions"][0]["urls"][0].partition("/functions")[0]
        answer = httpx.get(front + path, trust_env=False, timeout=30)
        return answer.status_code, answer.text


@pytest.fixture(scope="module")
def here(registry: str) -> Iterator[Here]:
    with public_directory() as home:
        programs = home / "programs"
        programs.mkdir()
        for name in ("one", "two", "three"):
            (programs / f"{name}.wasm").write_bytes(printing(name))
        (programs / "not.wasm").write_bytes(NOT_WASM)
        config = home / "corral.toml"
        config.write_text(
            f'[tenants.default]\ntokens = ["{OURS}"]\n[tenants.red]\ntokens = ["{RED}"]\n'
            f'[functions]\nmodule_urls = ["{registry}/", "oci://127.0.0.1:"]\n[engine.front]\nlisten = "127.0.0.1:0"\n'
            '[reapi]\naddress = ""\n'
        )
        up = CorralProcess(
            "up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", env={"CORRAL_CONFIG": str(config)}
        )
        up.start()
        try:
            yield Here(up, programs, registry)
        finally:
            up.stop()


def test_a_function_lives_its_life_on_the_command_line(here: Here) -> None:
    deployed = here.run("fn", "deploy", "hello", "one.wasm", "--revision", "v1")
    assert "hello@v1 deployed" in deployed
    assert "call it at http://" in deployed
    assert here.call("/functions/hello") == (200, "one")
    called = here.run("fn", "call", "hello", "/a?b=c")
    assert "200 in" in called
    assert "revision v1" in called
    assert "one" in called

    here.run("fn", "deploy", "hello", "two.wasm", "--revision", "v2", "-e", "A=B", "--memory", "1MiB")
    assert here.call("/functions/hello") == (200, "one")
    assert here.call("/functions/hello/v2") == (200, "two")
    assert "v2 is the default" in here.run("fn", "switch", "hello", "v2")
    assert here.call("/functions/hello") == (200, "two")
    assert "version 2" in here.run("fn", "rollback", "hello")
    assert here.call("/functions/hello") == (200, "one")
    assert "v1 95 %, v2 5 %" in here.run("fn", "split", "hello", "v1=95", "v2=5")
    assert "1 to 2 instances" in here.run("fn", "scale", "hello@v1", "--min", "1", "--max", "2")
    assert "get 503" in here.run("fn", "stop", "hello@v2")
    here.run("fn", "start", "hello@v2")
    assert here.run("fn", "list").split("\t")[0] == "hello"
    shown = json.loads(here.run("fn", "show", "hello", "--json"))
    assert [each["percent"] for each in shown["revisions"]] == [95, 5]
    assert "v1 95 %" in here.run("fn", "show", "hello")
    assert len(here.run("fn", "history", "hello").splitlines()) == shown["version"]
    here.run("fn", "logs", "hello")
    here.run("fn", "switch", "hello", "v1", "--off", "--successor", "v2")
    here.run("fn", "rm", "hello@v1")
    assert here.call("/functions/hello@v1")[0] == 404
    here.run("fn", "switch", "hello", "v2", "--off")
    assert here.call("/functions/hello")[0] == 503
    here.run("fn", "rollback", "hello", "--to", "1")
    assert here.call("/functions/hello") == (200, "one")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("deploy", "bad", "not.wasm"), "not WebAssembly"),
        (("deploy", "bad", "absent.wasm"), "absent.wasm"),
        (("deploy", "Bad", "one.wasm"), "not a name"),
        (("deploy", "bad", "one.wasm", "--revision", "A b"), "not a name"),
        (("deploy", "a/b", "one.wasm"), "not a name"),
        (("deploy", "bad", "one.wasm", "--revision", "v/1"), "not a name"),
        (("deploy", "bad", "one.wasm", "--min", "9"), "scale.min"),
        (("deploy", "bad", "one.wasm", "--memory", "1"), "limits.memory_bytes"),
        (("deploy", "bad", "one.wasm", "--kind", "http-component"), "needs a component"),
        (("deploy", "bad", "b3:" + "0" * 64 + "-8"), "not stored"),
        (("deploy", "bad", "http://127.0.0.1:1/x.wasm", "--digest", "b3:" + "0" * 64 + "-8"), "not fetched from"),
        (("deploy", "bad", "http://127.0.0.1:1/x.wasm"), "--digest"),
        (("show", "nobody"), "no function"),
        (("call", "nobody"), "no function"),
        (("switch", "nobody", "v1"), "no function"),
        (("split", "nobody", "v1=x"), "REVISION=PERCENT"),
        (("scale", "nobody", "--min", "1"), "names no revision"),
        (("rm", "nobody"), "no function"),
        (("history", "nobody"), "no function"),
        (("logs", "nobody"), "no function"),
    ],
)
def test_a_mistake_gets_one_clear_sentence_and_status_2(here: Here, arguments: tuple[str, ...], says: str) -> None:
    said = here.run("fn", *arguments, status=2)

    assert says in said
    assert "Traceback" not in said


def test_a_program_that_two_functions_share_outlives_one_of_them(here: Here) -> None:
    for name in ("sharing", "shared"):
        here.run("fn", "deploy", name, "three.wasm", "--revision", "v1")
        assert here.call(f"/functions/{name}") == (200, "three")

    here.run("fn", "rm", "sharing")

    assert here.call("/functions/sharing")[0] == 404
    assert here.call("/functions/shared") == (200, "three")


def test_the_same_name_with_other_content_is_a_conflict(here: Here) -> None:
    here.run("fn", "deploy", "twice", "one.wasm", "--revision", "v1")

    assert "nothing changed" in here.run("fn", "deploy", "twice", "one.wasm", "--revision", "v1")
    assert "other content" in here.run("fn", "deploy", "twice", "two.wasm", "--revision", "v1", status=2)


def test_a_tenant_sees_calls_and_changes_only_its_own_functions(here: Here) -> None:
    here.run("fn", "deploy", "private", "one.wasm", "--revision", "v1")

    assert "private" not in here.run("fn", "list", token=RED)
    for arguments in (("show", "private"), ("switch", "private", "v1"), ("rm", "private"), ("logs", "private")):
        assert 'no function "private"' in here.run("fn", *arguments, token=RED, status=2)
    assert here.call("/tenants/red/functions/private")[0] == 404
    here.run("fn", "deploy", "private", "two.wasm", "--revision", "v1", token=RED)
    assert here.call("/functions/private") == (200, "one")
    assert here.call("/tenants/red/functions/private") == (200, "two")
    digest = str(Digest.of(printing("one")))
    assert "not stored" in here.run("fn", "deploy", "stolen", digest, token=RED, status=2)


def test_a_program_is_fetched_by_url_if_it_is_what_its_digest_says(here: Here) -> None:
    digest = str(Digest.of(printing("fetched")))
    url = f"{here.registry}/hello.wasm"

    here.run("fn", "deploy", "fetched", url, "--digest", digest, "--revision", "v1")

    assert here.call("/functions/fetched") == (200, "fetched")
    other = str(Digest.of(printing("another")))
    assert "digest" in here.run("fn", "deploy", "lied", url, "--digest", other, status=2)
    redirected = here.run("fn", "deploy", "moved", f"{here.registry}/x", "--digest", other, status=1)
    assert "cannot be fetched" in redirected


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is a registry")
def test_a_program_comes_from_an_oci_registry_as_an_artifact(here: Here, tmp_path: Path) -> None:
    layer = "application/wasm"
    with debian_registry(tmp_path) as registry:
        name = registry.push("functions/hello", build(printing("artifact"), how="", layer_type=layer))
        both = registry.push("functions/two", build(printing("1"), printing("2"), how="", layer_type=layer))
        here.run("fn", "deploy", "pulled", f"oci://{name}", "--revision", "v1")
        assert here.call("/functions/pulled") == (200, "artifact")

        assert "2 layers" in here.run("fn", "deploy", "two", f"oci://{both}", "--revision", "v1", status=2)
        absent = f"oci://{registry.address}/functions/absent:1"
        here.run("fn", "deploy", "absent", absent, "--revision", "v1", status=2)
        elsewhere = here.run("fn", "deploy", "x", "oci://registry.example/x:1", "--revision", "v1", status=2)
        assert "not fetched from this URL" in elsewhere
    shown = json.loads(here.run("fn", "show", "pulled", "--json"))
    assert shown["revisions"][0]["spec"]["module"].startswith("sha256:")


def test_a_function_without_an_address_says_why_in_one_sentence(here: Here) -> None:
    with public_directory() as home, socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        taker.listen()
        address = f"127.0.0.1:{taker.getsockname()[1]}"
        settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=")
        up = CorralProcess("up", home, *settings, f"engine.front.listen={address}")
        up.start()
        try:
            other = Here(up, here.programs, here.registry)
            deployed = other.run("fn", "deploy", "hello", "one.wasm", "--revision", "v1")
            called = other.run("fn", "call", "hello", status=1)
        finally:
            up.stop()

    why = f"engine.front.listen, {address}, cannot be listened on: Address already in use"
    assert "it cannot be called yet: wrk_" in deployed
    assert why in deployed
    assert why in called


def test_a_change_by_somebody_who_saw_an_older_version_is_refused(here: Here) -> None:
    here.run("fn", "deploy", "raced", "one.wasm", "--revision", "v1")
    here.run("fn", "deploy", "raced", "two.wasm", "--revision", "v2")

    assert "version 2 now" in here.run("fn", "switch", "raced", "v2", "--if-version", "1", status=2)
    here.run("fn", "switch", "raced", "v2", "--if-version", "2")


def test_what_a_function_wrote_is_printed_by_request_and_followed(here: Here) -> None:
    (here.programs / "talks.wasm").write_bytes(printing("done", complaint="look at this\n"))
    here.run("fn", "deploy", "talks", "talks.wasm", "--revision", "v1")
    request = here.run("fn", "call", "talks").split("request ")[1].split()[0]
    wait_until(lambda: "look at this" in here.run("fn", "logs", "talks"), "a line", within_s=10)

    assert "look at this" in here.run("fn", "logs", "talks", "--request", request)
    assert here.run("fn", "logs", "talks", "--request", "another") == ""

    async def follow() -> str:
        async with Corral(here.up.url, OURS) as corral, asyncio.timeout(20):
            function = await corral.functions.get("talks")
            async with contextlib.aclosing(corral.functions.follow_logs("talks")) as lines:
                async with asyncio.TaskGroup() as group:
                    line = group.create_task(anext(lines))
                    while not line.done():
                        async with corral.functions.call(function):
                            await asyncio.wait({line}, timeout=0.2)
                return line.result().text

    assert "look at this" in asyncio.run(follow())


def test_a_trace_shows_what_a_request_went_through(here: Here) -> None:
    here.run("fn", "deploy", "traced", "one.wasm", "--revision", "v1")
    called = here.run("fn", "call", "traced", "--trace")
    request = called.split("request ")[1].split()[0]

    shown = here.run("fn", "trace", "traced", request)

    for step in ("route", "queue", "instantiate", "run"):
        assert step in called
        assert step in shown
    assert request in here.run("fn", "trace", "traced")
    assert json.loads(here.run("fn", "trace", "traced", request, "--json"))[0]["status"] == 200
    assert "trace_id" not in here.run("fn", "logs", "traced")
    assert "no trace of a request" in here.run("fn", "trace", "traced", "req_nobody", status=2)
    assert 'no function "traced"' in here.run("fn", "trace", "traced", token=RED, status=2)


def test_metrics_name_the_function_and_its_revision(here: Here) -> None:
    here.run("fn", "deploy", "counted", "one.wasm", "--revision", "v1")
    here.call("/functions/counted")
    line = 'corral_function_requests_total{tenant="default",function="counted",revision="v1"} 1'

    wait_until(lambda: line in here.ask("GET", "/metrics").text, "a counted request", within_s=10)


# The older interface.


def event(name: str, revision: str = "", **more: Any) -> dict[str, Any]:
    digest = Digest.of(printing("three"))
    return {"FunctionName": name, "FunctionRevision": revision, "WasmFileName": str(digest), "Executor": 1, **more}


@pytest.fixture(scope="module")
def stored(here: Here) -> str:
    """A program that tasks may name."""

    async def store() -> None:
        async with Corral(here.up.url, OURS) as corral:
            await corral.blobs.write("", Digest.of(printing("three")), pieces_of(printing("three")))

    asyncio.run(store())
    return str(Digest.of(printing("three")))


def test_the_older_clients_calls_deploy_list_switch_and_stop(here: Here, stored: str) -> None:
    made = here.ask("POST", "/tasks", json=event("old", "rev1", Id="ignored", WasmFunctionHttpPort=9))
    assert made.status_code == 201, made.text
    task = made.json()
    assert task["State"] == 2
    assert here.ask("GET", f"/tasks/{task['Id']}").json()["Config"]["FunctionRevision"] == "rev1"
    assert task["Id"] in here.ask("GET", "/tasks").json()
    assert here.call("/functions/old") == (200, "three")

    second = here.ask("POST", "/tasks", json=event("old", "rev2")).json()
    assert here.ask("GET", "/revisions/default").json()["old"]["TaskId"] == task["Id"]
    switched = here.ask("PUT", "/revisions/old/rev2/default/on")
    assert (switched.status_code, switched.content) == (200, b"")
    assert here.ask("GET", "/revisions/default").json()["old"]["TaskId"] == second["Id"]
    functions = here.ask("GET", "/functions").json()
    assert functions["old-rev2"] == {
        "WasmFunctionHttpPort": task["HttpPort"],
        "TaskId": second["Id"],
        "DefaultRevision": True,
    }
    assert functions["old-rev1"]["DefaultRevision"] is False

    assert here.ask("PUT", "/revisions/old/rev2/default/off").status_code == 200
    assert "old" not in here.ask("GET", "/revisions/default").json()
    assert here.call("/functions/old")[0] == 503

    assert here.ask("DELETE", f"/tasks/{task['Id']}").status_code == 204
    assert here.ask("GET", f"/tasks/{task['Id']}").json()["State"] == 3
    assert here.call("/functions/old/rev1")[0] == 503


def test_a_task_without_a_revision_gets_the_one_named_default(here: Here, stored: str) -> None:
    made = here.ask("POST", "/tasks", json=event("nameless"))

    assert made.json()["Config"]["FunctionRevision"] == "default"
    assert here.call("/functions/nameless/default") == (200, "three")


def test_a_task_may_come_from_a_registry_that_the_operator_allows(here: Here) -> None:
    made = here.ask("POST", "/tasks", json=event("from", WasmRegistryUrl=f"{here.registry}/hello.wasm"))

    assert made.status_code == 201
    assert here.call("/functions/from") == (200, "fetched")
    refused = here.ask("POST", "/tasks", json=event("from2", WasmRegistryUrl="http://169.254.169.254/x"))
    assert refused.status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/tasks", b"{", 400),
        ("POST", "/tasks", b"[]", 400),
        ("POST", "/tasks", b"\xff", 400),
        ("POST", "/tasks", json.dumps(event("x", Surprise=1)).encode(), 400),
        ("POST", "/tasks", json.dumps(event("x", Executor=7)).encode(), 400),
        ("POST", "/tasks", json.dumps({"FunctionRevision": "v1"}).encode(), 400),
        ("POST", "/tasks", json.dumps({**event("x"), "WasmFileName": "x.wasm"}).encode(), 400),
        ("POST", "/tasks", json.dumps(event("Not A Name")).encode(), 400),
        ("GET", "/tasks/nonsense", None, 400),
        ("DELETE", "/tasks/nonsense", None, 400),
        ("GET", "/tasks/11111111-1111-1111-1111-111111111111", None, 404),
        ("DELETE", "/tasks/11111111-1111-1111-1111-111111111111", None, 404),
        ("PUT", "/revisions/nobody/v1/default/on", None, 404),
        ("PUT", "/revisions/nobody/v1/default/off", None, 404),
        ("PUT", "/revisions/nobody/v1/default/maybe", None, 400),
    ],
)
def test_what_the_older_worker_let_pass_is_refused_in_its_own_words(
    here: Here, stored: str, method: str, path: str, body: bytes | None, status: int
) -> None:
    answer = here.ask(method, path, content=body)

    assert answer.status_code == status, answer.text
    assert answer.json()["HTTPStatusCode"] == status
    assert answer.json()["Message"]


def test_an_unknown_revision_of_a_known_function_is_404_and_changes_no_default(here: Here, stored: str) -> None:
    here.ask("POST", "/tasks", json=event("known", "v1"))
    before = here.ask("GET", "/revisions/default").json()

    for switch in ("on", "off"):
        assert here.ask("PUT", f"/revisions/known/nope/default/{switch}").status_code == 404

    assert here.ask("GET", "/revisions/default").json() == before


def test_the_older_clients_token_header_is_understood_and_none_is_401(here: Here) -> None:
    assert here.ask("GET", "/tasks", token="").status_code == 401
    assert here.ask("GET", "/tasks", token="", headers={"PROCYON_ADMIN_TOKEN": "wrong"}).status_code == 401
    assert here.ask("GET", "/tasks", token="", headers={"PROCYON_ADMIN_TOKEN": OURS}).status_code == 200
