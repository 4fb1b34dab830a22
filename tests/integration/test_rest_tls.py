"""REST over TLS: a certificate of the scheduler's own or of a CA, pinned or trusted; what is said when it is not."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.app.config import load_config
from corral.client import Corral, TaskDefinition
from corral.kernel.errors import CorralError, InvalidSpec, SchedulerUnavailable, Unauthenticated
from corral.testing.certificates import Identity, issue
from corral.testing.processes import CorralProcess, clean_environment, free_ports, public_directory, why_no_agent

pytestmark = pytest.mark.timeout(180)
needs_agent = pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Identity:
    return issue(folder, "our-ca", ca=True)


@pytest.fixture(scope="module")
def scheduler(folder: Path, ca: Identity) -> Identity:
    return issue(folder, "scheduler", by=ca)


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Identity:
    return issue(folder, "stranger")


# ------------------------------------------------------------------------------------------------ what a client trusts


class Listener:
    """A server with a certificate, which answers nothing and remembers what it was sent."""

    def __init__(self) -> None:
        self.heard = b""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard += await reader.read(65_536)
        writer.close()


@asynccontextmanager
async def listening(shown: Identity | None) -> AsyncIterator[Listener]:
    context = None
    if shown is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown.crt, shown.key)
    listener = Listener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=context)
    async with server:
        scheme = "http" if shown is None else "https"
        listener.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield listener


async def failure(url: str, *, ca_file: str = "", fingerprint: str = "") -> CorralError:
    with pytest.raises(CorralError) as caught:
        async with Corral(url, "hush-hush-token", ca_file=ca_file, fingerprint=fingerprint, timeout_s=10) as corral:
            await corral.tasks.page()
    return caught.value


async def test_a_server_with_another_certificate_hears_nothing_not_even_the_token(
    scheduler: Identity, stranger: Identity
) -> None:
    async with listening(stranger) as listener:
        error = await failure(listener.url, fingerprint=scheduler.fingerprint)

    assert isinstance(error, Unauthenticated)
    assert stranger.fingerprint in error.message
    assert "CORRAL_FINGERPRINT" in error.cure
    assert listener.heard == b""


async def test_a_certificate_that_no_ca_of_ours_vouches_for_is_refused_with_both_cures(
    scheduler: Identity, stranger: Identity
) -> None:
    async with listening(scheduler) as listener:
        errors = [await failure(listener.url), await failure(listener.url, ca_file=str(stranger.crt))]

    for error in errors:
        assert isinstance(error, Unauthenticated)
        assert "is not trusted" in error.message
        assert "CORRAL_FINGERPRINT" in error.cure and "CORRAL_CA_FILE" in error.cure
    assert listener.heard == b""


async def test_the_right_pin_and_the_right_ca_let_a_request_pass(ca: Identity, scheduler: Identity) -> None:
    colons = ":".join(scheduler.fingerprint[at : at + 2].upper() for at in range(0, 64, 2))
    for trust in ({"fingerprint": scheduler.fingerprint}, {"fingerprint": colons}, {"ca_file": str(ca.crt)}):
        async with listening(scheduler) as listener:
            await failure(listener.url, **trust)

        assert b"hush-hush-token" in listener.heard


async def test_tls_to_plain_text_and_plain_text_to_tls_say_which_it_should_be(scheduler: Identity) -> None:
    async with listening(None) as plain, listening(scheduler) as secret:
        to_plain = await failure(plain.url.replace("http:", "https:"))
        to_secret = await failure(secret.url.replace("https:", "http:"))

    assert isinstance(to_plain, SchedulerUnavailable)
    assert f"write {plain.url}" in to_plain.cure
    assert isinstance(to_secret, SchedulerUnavailable)
    assert "https://" in to_secret.cure


@pytest.mark.parametrize(
    ("url", "ca_file", "fingerprint", "sentence"),
    [
        ("https://x", "/a", "b", "two ways"),
        ("http://127.0.0.1:1", "", "ab" * 32, "shows no certificate"),
        ("https://x", "", "abc", "64 hexadecimal digits"),
        ("https://x", "/does/not/exist", "", "No such file"),
        ("https://x", __file__, "", "no certificate in PEM"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    url: str, ca_file: str, fingerprint: str, sentence: str
) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        Corral(url, ca_file=ca_file, fingerprint=fingerprint)


# ------------------------------------------------------------------------------------------------ what is configured


def test_beyond_this_machine_rest_needs_a_certificate_or_a_word(tmp_path: Path) -> None:
    def shown(**flags: str) -> tuple[str, str, bool]:
        tls = load_config(env={}, directory=tmp_path, flags={"scheduler.http": "10.0.0.1:7070", **flags}).http_tls
        return tls.certificate, tls.key, tls.plain

    with pytest.raises(InvalidSpec, match=r"scheduler\.http_tls\.certificate"):
        shown()
    assert shown(**{"scheduler.http_tls.plain": "true"}) == ("", "", True)
    assert shown(**{"tls.certificate": "a", "tls.key": "b"}) == ("a", "b", False)
    own = {"scheduler.http_tls.certificate": "c", "scheduler.http_tls.key": "d"}
    assert shown(**own, **{"tls.certificate": "a", "tls.key": "b"}) == ("c", "d", False)


def test_on_loopback_rest_is_plain_unless_it_has_a_certificate_of_its_own(tmp_path: Path) -> None:
    def certificate(**flags: str) -> str:
        return load_config(env={}, directory=tmp_path, flags=flags).http_tls.certificate

    assert certificate(**{"tls.certificate": "a", "tls.key": "b"}) == ""
    assert certificate(**{"scheduler.http_tls.certificate": "a", "scheduler.http_tls.key": "b"}) == "a"


def corral(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_key_of_another_certificate_is_one_clear_error(
    tmp_path: Path, scheduler: Identity, stranger: Identity
) -> None:
    settings = ["scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", f"data_dir={tmp_path}"]
    settings += [f"scheduler.http_tls.certificate={scheduler.crt}", f"scheduler.http_tls.key={stranger.key}"]

    done = corral("scheduler", *(word for each in settings for word in ("--set", each)))

    assert done.returncode == 2
    assert done.stderr.startswith("corral: error: scheduler.http_tls: ")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ all of it, running


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[tuple[CorralProcess, dict[str, str]]]:
    """`corral up` on all addresses of this machine, with a certificate that `corral certificate new` made."""
    made = json.loads(corral("certificate", "new", str(folder / "new"), "--name", "corral.test", "--json").stdout)
    http, grpc = free_ports(2)
    token = json.loads(corral("token", "new", "--json").stdout)
    with public_directory() as home:
        process = CorralProcess(
            *("up", home, f"scheduler.http=0.0.0.0:{http}", f"scheduler.grpc=127.0.0.1:{grpc}"),
            *(f"tls.certificate={made['certificate']}", f"tls.key={made['key']}"),
            f"tenants.acme.tokens={token['hash']}",
        )
        try:
            process.start()
            yield process, made | token
        finally:
            process.stop()


@needs_agent
def test_up_says_https_and_the_command_line_works_with_the_fingerprint(
    up: tuple[CorralProcess, dict[str, str]],
) -> None:
    process, made = up
    url = process.url.replace("0.0.0.0", "127.0.0.1")
    known = {"CORRAL_URL": url, "CORRAL_TOKEN": made["token"]}
    shown = corral("certificate", "show", made["certificate"]).stdout.strip()

    done = corral("run", "--", "echo", "hello", **known, CORRAL_FINGERPRINT=shown)
    unknown = corral("run", "--", "true", **known)

    assert process.url.startswith("https://0.0.0.0:")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert unknown.returncode == 2
    assert "is not trusted" in unknown.stderr


@needs_agent
async def test_the_sdk_streams_over_tls_and_the_certificate_names_what_it_was_made_for(
    up: tuple[CorralProcess, dict[str, str]],
) -> None:
    process, made = up
    url = process.url.replace("0.0.0.0", "localhost")
    async with Corral(url, made["token"], ca_file=made["certificate"]) as corral:
        task = await corral.tasks.submit(TaskDefinition(payload={"command": ["seq", "20000"]}))
        log = b"".join([piece async for piece in corral.logs.read(task.id, 0, follow=True)])

    assert log.splitlines()[-1] == b"20000"


def test_a_certificate_is_never_made_over_another_one(tmp_path: Path) -> None:
    first = corral("certificate", "new", str(tmp_path), "-n", "10.1.2.3")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = corral("certificate", "new", str(tmp_path))

    assert first.returncode == 0, first.stderr
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / "scheduler.key").stat().st_mode & 0o777 == 0o600
    assert corral("certificate", "new", str(tmp_path / "x"), "-n", "no name").returncode == 2
