"""The plain HTTP caches of a real scheduler: names, layers, tokens, WebDAV's few words, Bazel's promises."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from xml.etree import ElementTree

import httpx
import pytest

from corral.testing.processes import CorralProcess
from corral.wire.reapi import remote_execution_pb2 as reapi

ANN, BOB, COMMON, READER, ADMIN = (
    f"token-of-{name}-0123456789" for name in ("ann", "bob", "common", "reader", "admin")
)
CONFIG = f"""
[http_cache]
shared = "common"
entry_bytes = 1000000
[access]
admin_tokens = ["{ADMIN}"]
[tenants.ann]
tokens = ["{ANN}"]
[tenants.bob]
tokens = ["{BOB}"]
blob_bytes = 1000
[tenants.common]
tokens = ["{COMMON}"]
[tenants.reader]
tokens = ["{READER}"]
scopes = ["blobs:read"]
"""
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[CorralProcess]:
    with tempfile.TemporaryDirectory(prefix="corral-cache-", dir="/tmp") as folder:
        (Path(folder) / "corral.toml").write_text(CONFIG)
        process = CorralProcess("scheduler", Path(folder), "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0")
        process.start()
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module")
def ask(scheduler: CorralProcess) -> Iterator[Ask]:
    with httpx.Client(base_url=f"{scheduler.url}/cache", trust_env=False, timeout=20) as client:

        def send(
            method: str, path: str, content: bytes | None = None, *, token: str = ANN, **headers: str
        ) -> httpx.Response:
            return client.request(
                method, path, content=content, headers={"authorization": f"Bearer {token}", **headers}
            )

        yield send


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "name", ["ab/cdef0123", "flat-key.v1", "a/b/c/abc123", f"ac/{'0' * 64}", "prefix/a/b/c/x", "cas/not-a-hash"]
)
def test_an_entry_of_any_layout_is_kept_replaced_and_removed(ask: Ask, name: str) -> None:
    assert ask("GET", f"/ann/{name}").status_code == 404
    assert ask("HEAD", f"/ann/{name}").status_code == 404

    assert ask("PUT", f"/ann/{name}", b"first").status_code == 201
    assert ask("PUT", f"/ann/{name}", b"second, longer").status_code == 201

    got, head = ask("GET", f"/ann/{name}"), ask("HEAD", f"/ann/{name}")
    assert (got.status_code, got.content) == (200, b"second, longer")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "14", b"")
    assert ask("DELETE", f"/ann/{name}").status_code == 204
    assert ask("DELETE", f"/ann/{name}").status_code == 404
    assert ask("GET", f"/ann/{name}").status_code == 404


def test_an_empty_entry_is_an_entry(ask: Ask) -> None:
    ask("PUT", "/ann/empty", b"")

    got = ask("GET", "/ann/empty")
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")


def test_content_under_its_own_hash_must_have_it(ask: Ask) -> None:
    good = ask("PUT", f"/ann/cas/{sha256(b'good')}", b"good")
    bad = ask("PUT", f"/ann/cas/{sha256(b'promised')}", b"sent....")

    assert (good.status_code, bad.status_code) == (201, 422)
    assert ask("GET", f"/ann/cas/{sha256(b'good')}").content == b"good"
    assert ask("GET", f"/ann/cas/{sha256(b'promised')}").status_code == 404


@pytest.mark.parametrize("size_bytes", [10, 900_000])
def test_content_that_is_there_already_can_be_sent_again_over_one_connection(
    scheduler: CorralProcess, ask: Ask, size_bytes: int
) -> None:
    content = bytes(size_bytes)
    path = f"/ann/cas/{sha256(content)}"
    connection = HTTPConnection(scheduler.url.removeprefix("http://"), timeout=20)
    connection.auto_open = 0  # a connection that was closed stays closed
    connection.connect()
    connection.sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)  # no kernel takes what the server does not read
    with closing(connection):
        for _ in range(10):
            head = {"authorization": f"Bearer {ANN}", "content-length": str(size_bytes)}
            connection.request("PUT", f"/cache{path}", headers=head)
            ask("HEAD", path)  # whoever answers a head without its body has had the time to do so
            connection.send(content)
            assert connection.getresponse().read() == b""


def test_content_of_unknown_length_is_taken_and_checked_too(scheduler: CorralProcess, ask: Ask) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"in "
        yield b"pieces"

    headers = {"authorization": f"Bearer {ANN}"}
    with httpx.Client(base_url=f"{scheduler.url}/cache", headers=headers, trust_env=False) as client:
        good = client.put(f"/ann/cas/{sha256(b'in pieces')}", content=pieces())
        bad = client.put(f"/ann/cas/{sha256(b'something else')}", content=pieces())

    assert (good.status_code, bad.status_code) == (201, 422)
    assert ask("GET", f"/ann/cas/{sha256(b'in pieces')}").content == b"in pieces"


def test_a_part_can_be_asked_for(ask: Ask) -> None:
    ask("PUT", "/ann/part", b"0123456789")

    part = ask("GET", "/ann/part", range="bytes=2-4")
    rest = ask("GET", "/ann/part", range="bytes=7-")
    beyond = ask("GET", "/ann/part", range="bytes=10-")

    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (rest.status_code, rest.content) == (206, b"789")
    assert beyond.status_code == 416


def test_tenants_do_not_see_each_other_but_all_see_the_shared_layer(ask: Ask) -> None:
    ask("PUT", "/ann/mine", b"ann's")
    ask("PUT", "/common/base", b"from all", token=COMMON)

    assert ask("GET", "/bob/mine", token=BOB).status_code == 404
    assert ask("GET", "/ann/mine", token=BOB).status_code == 403
    assert ask("PUT", "/common/base", b"mine now", token=BOB).status_code == 403
    assert ask("GET", "/bob/base", token=BOB).content == b"from all"
    assert ask("GET", "/common/base", token=COMMON).content == b"from all"


def test_an_administrator_uses_the_caches_that_there_are_and_makes_none(ask: Ask) -> None:
    ask("PUT", "/ann/for-admin", b"ann's")

    assert ask("GET", "/ann/for-admin", token=ADMIN).content == b"ann's"
    assert ask("PUT", "/nobody/x", b"x", token=ADMIN).status_code == 403
    assert ask("GET", "/", token=ADMIN).status_code == 403


def test_an_own_entry_lies_above_the_shared_one(ask: Ask) -> None:
    ask("PUT", "/common/over", b"shared", token=COMMON)
    ask("PUT", "/ann/over", b"own")

    assert ask("GET", "/ann/over").content == b"own"
    ask("DELETE", "/ann/over")
    assert ask("GET", "/ann/over").content == b"shared"
    assert ask("GET", "/common/over", token=COMMON).content == b"shared"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("Bearer nobody-at-all-0123", 401),
        ("Basic not-base64!", 401),
        ("Basic " + "YW5uOg==", 401),  # ann: and no password
    ],
)
def test_without_a_valid_token_there_is_nothing(ask: Ask, header: str, status: int) -> None:
    assert ask("GET", "/ann/x", authorization=header).status_code == status


def test_the_password_of_basic_authentication_is_the_token(scheduler: CorralProcess) -> None:
    answer = httpx.put(f"{scheduler.url}/cache/ann/basic", content=b"x", auth=("anybody", ANN), trust_env=False)

    assert answer.status_code == 201


def test_a_token_that_only_reads_cannot_write(ask: Ask) -> None:
    assert ask("GET", "/reader/x", token=READER).status_code == 404
    assert ask("PUT", "/reader/x", b"x", token=READER).status_code == 403
    assert ask("DELETE", "/reader/x", token=READER).status_code == 403
    assert ask("MKCOL", "/reader/x/", token=READER).status_code == 403


@pytest.mark.parametrize(
    "path", ["/ann/..%2Fbob%2Fmine", "/ann/a%00b", "/ann/a%20b", "/ann/" + "x" * 300, "/ann/" + "/".join("x" * 20)]
)
def test_names_that_no_client_writes_are_refused(ask: Ask, path: str) -> None:
    assert ask("PUT", path, b"x").status_code == 422
    assert ask("GET", path).status_code == 422


def test_what_is_too_large_or_over_the_quota_is_refused_by_name(ask: Ask) -> None:
    large = ask("PUT", "/ann/large", b"x" * 1_000_001)
    full = ask("PUT", "/bob/full", b"x" * 1001, token=BOB)

    assert (large.status_code, full.status_code) == (413, 507)
    assert "http_cache.entry_bytes" in large.json()["detail"]
    assert ask("GET", "/ann/large").status_code == ask("GET", "/bob/full", token=BOB).status_code == 404


def test_webdav_knows_entries_directories_and_what_is_not_there(ask: Ask) -> None:
    assert ask("MKCOL", "/ann/dav/a/").status_code == 201
    ask("PUT", "/ann/dav/a/key", b"12345")

    entry, folder = ask("PROPFIND", "/ann/dav/a/key"), ask("PROPFIND", "/ann/dav/a/")
    absent = ask("PROPFIND", "/ann/dav/a/other")

    assert (entry.status_code, folder.status_code, absent.status_code) == (207, 207, 404)
    told = ElementTree.fromstring(entry.content)
    assert told.findtext(".//{DAV:}getcontentlength") == "5"
    assert told.findtext(".//{DAV:}href") == "/cache/ann/dav/a/key"
    assert told.find(".//{DAV:}collection") is None
    assert ElementTree.fromstring(folder.content).find(".//{DAV:}collection") is not None
    assert ask("OPTIONS", "/ann/").headers["dav"] == "1"
    assert ask("PROPPATCH", "/ann/dav/a/key").status_code == 400


def test_a_result_of_bazels_is_told_only_while_all_that_it_names_is_there(ask: Ask) -> None:
    leaf = b"a leaf"
    tree = reapi.Tree(
        root=reapi.Directory(
            files=[reapi.FileNode(name="leaf", digest=reapi.Digest(hash=sha256(leaf), size_bytes=len(leaf)))]
        )
    ).SerializeToString()
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="o", digest=reapi.Digest(hash=sha256(b"out"), size_bytes=3))],
        output_directories=[
            reapi.OutputDirectory(path="d", tree_digest=reapi.Digest(hash=sha256(tree), size_bytes=len(tree)))
        ],
    ).SerializeToString()
    name = f"/ann/ac/{sha256(b'an action')}"

    def store_and_ask() -> int:
        ask("PUT", name, result)
        return ask("GET", name).status_code

    seen = [store_and_ask()]
    for content in (b"out", tree, leaf):
        ask("PUT", f"/ann/cas/{sha256(content)}", content)
        seen.append(store_and_ask())

    assert seen == [404, 404, 404, 200]
    assert ask("GET", name).content == result
