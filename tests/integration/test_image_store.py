"""Images from a real registry to an unpacked root: pulled, verified, shared, evicted; failures leave nothing."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from corral.images.adapters.sources import resolve
from corral.images.model import MIB, ImageLimits, ImagesConfig, LayoutPlace, Platform, Progress
from corral.images.service import Images
from corral.kernel.clock import SystemClock
from corral.kernel.errors import (
    BlobCorrupt,
    Conflict,
    CorralError,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
    Refused,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)
from corral.testing.images import (
    BuiltImage,
    DebianRegistry,
    build,
    compress,
    debian_registry,
    directory,
    file,
    index_of,
    sha256,
    symlink,
    tar_of,
    why_no_registry,
    write_docker_archive,
    write_layout,
)

AMD64 = Platform(architecture="amd64")
needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with debian_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def open_images(
    folder: Path, config: ImagesConfig | None = None, in_use: Callable[[], list[str]] = list, **limits: float
) -> Images:
    chosen = config or ImagesConfig(credentials_file="", patience_s=0.0)
    if limits:
        chosen = msgspec.structs.replace(chosen, limits=msgspec.structs.replace(ImageLimits(), **limits))
    return Images(chosen, folder, clock=SystemClock(), platform=AMD64, resolve=resolve, in_use=in_use)


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    async with open_images(tmp_path / "images") as opened:
        yield opened


def nothing_left(folder: Path) -> bool:
    return os.listdir(folder / "tmp") == [] and not [each for each in os.listdir(folder) if each.startswith("sha256-")]


DEMO = build(
    tar_of(directory("bin"), file("bin/hello", b"#!/bin/sh\n", mode=0o755), file("etc/old", b"x")),
    tar_of(file("etc/.wh.old"), file("etc/new", b"new")),
    settings={"Env": ["PATH=/bin", "LANG=C"], "Cmd": ["/bin/hello"]},
)


# ---- pulling ----


async def test_an_image_is_pulled_by_tag_and_by_digest_and_is_the_same(
    registry: DebianRegistry, images: Images
) -> None:
    reference = registry.push("demo/one", DEMO)
    heard: list[Progress] = []

    by_tag = await images.lease(reference, on_progress=heard.append)
    by_digest = await images.lease(f"{registry.address}/demo/one@{DEMO.digest}")

    root = Path(by_tag.image.root)
    assert by_tag.image.digest == by_digest.image.digest == DEMO.digest
    assert (root / "etc/new").read_text() == "new"
    assert not (root / "etc/old").exists()
    assert os.access(root / "bin/hello", os.X_OK)
    assert by_tag.image.record.settings.env == ("PATH=/bin", "LANG=C")
    assert heard[-1].stage == "finishing"
    assert heard[-1].done_bytes == heard[-1].total_bytes > 0


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
async def test_every_compression_is_undone(registry: DebianRegistry, images: Images, how: str) -> None:
    reference = registry.push("demo/packed", build(tar_of(file("a", b"x" * 300_000)), how=how), tag=f"t{how}")

    lease = await images.lease(reference)

    assert (Path(lease.image.root) / "a").stat().st_size == 300_000


async def test_an_index_gives_the_image_of_this_platform(registry: DebianRegistry, images: Images) -> None:
    wanted = build(tar_of(file("amd")))
    other = build(tar_of(file("arm")), architecture="arm64")
    reference = registry.push("demo/multi", index_of(arm64=other, amd64=wanted))

    lease = await images.lease(reference)

    assert lease.image.digest == wanted.digest
    only_arm = registry.push("demo/arm", index_of(arm64=other))
    with pytest.raises(InvalidSpec, match=r"no image for linux/amd64; it offers linux/arm64"):
        await images.lease(only_arm)
    with pytest.raises(InvalidSpec, match=r"is an image for linux/arm64"):
        await images.lease(registry.push("demo/plainarm", other))


async def test_many_who_ask_at_once_share_one_preparation_also_between_processes(
    registry: DebianRegistry, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    big = build(tar_of(*(file(f"f{n}", os.urandom(20_000)) for n in range(300))))
    reference = registry.push("demo/big", big)
    finished: list[Progress] = []

    async with open_images(tmp_path / "images") as other, asyncio.TaskGroup() as group:
        for each in (images, other, images, other, images):
            group.create_task(
                _leased(each, reference, lambda told: finished.append(told) if told.stage == "finishing" else None)
            )

    assert len({id(told) for told in finished}) == 1
    assert os.listdir(tmp_path / "images" / "tmp") == []


async def _leased(images: Images, reference: str, on_progress: Callable[[Progress], None]) -> None:
    (await images.lease(reference, on_progress=on_progress)).release_nowait()


async def test_a_second_use_prepares_nothing(registry: DebianRegistry, images: Images) -> None:
    reference = registry.push("demo/warm", DEMO)
    told: list[Progress] = []
    first = await images.lease(reference, on_progress=told.append)
    assert told
    told.clear()

    second = await images.lease(reference, secret="another:tenant", on_progress=told.append)

    assert told == []
    assert second.image.root == first.image.root


async def test_layouts_and_archives_of_docker_save_are_taken(images: Images, tmp_path: Path) -> None:
    layer = tar_of(file("from", b"here"))
    layout = write_layout(tmp_path / "layout", build(layer), "1.0")
    archive = write_docker_archive(tmp_path / "saved.tar", "saved:1", layer, tar_of(file("more")))

    for text in (
        f"oci:{layout}:1.0",
        f"oci:{layout}",
        f"docker-archive:{archive}:saved:1",
        f"docker-archive:{archive}",
    ):
        place, wanted = images.place_of(text)
        image = await images.take(place, wanted, name=text, pin=True)
        assert (Path(image.root) / "from").read_bytes() == b"here"
        assert image.record.shared
        assert image.record.pinned
        lease = await images.lease(image.digest)  # an operator's image is everybody's, by digest
        lease.release_nowait()
    assert len(images.list()) == 2


async def test_what_is_here_is_found_by_the_beginning_of_its_digest_and_kept_by_all_of_it(
    images: Images, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "layout", DEMO, "1")
    place, wanted = images.place_of(f"oci:{layout}:1")
    await images.take(place, wanted, name="demo")

    assert images.find(DEMO.digest[: len("sha256:") + 4]).digest == DEMO.digest
    with pytest.raises(NotFound, match="not prepared on this machine"):
        images.find(DEMO.digest[: len("sha256:") + 3])
    kept = await images.keep(DEMO.digest, pin=True)
    assert (kept.record.pinned, kept.record.references) == (True, ("demo",))
    with pytest.raises(NotFound, match="a digest alone does not say where to get it"):
        await images.keep(f"sha256:{'0' * 64}")


# ---- who may ----


async def test_credentials_come_from_dockers_file_or_from_a_secret(tmp_path: Path) -> None:
    if why_no_registry():
        pytest.skip(why_no_registry())
    passwords = tmp_path / "htpasswd"
    passwords.write_text("ann:$2b$04$abcdefghijklmnopqrstuuFmEfrkTQnczNzw475xE2VhDrK1uwJiC\n")  # "right"
    with debian_registry(tmp_path, htpasswd=passwords) as running:
        place = f"{running.address}/absent:1"
        auth = base64.b64encode(b"ann:right").decode()
        docker = json.dumps({"auths": {running.address: {"auth": auth}}})
        (tmp_path / "config.json").write_text(docker)
        config = ImagesConfig(credentials_file=str(tmp_path / "config.json"))
        async with open_images(tmp_path / "images", config) as images:
            for secret in ("", "ann:right", docker):
                with pytest.raises(NotFound):  # let in, and told that there is no such image
                    await images.lease(place, secret=secret)
            with pytest.raises(Unauthenticated, match="refuses these credentials"):
                await images.lease(place, secret="ann:wrong")


async def test_a_token_is_fetched_where_the_registry_says_and_passwords_go_nowhere_else(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:
        realm = f"http://{liar.address}/token"

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            if path.startswith("/token"):
                body = b'{"token": "let-me-in"}' if "Basic YW5uOnJpZ2h0" in liar.heads[-1] else b"{}"
                return {"Content-Length": str(len(body))}, body, False
            if "Bearer let-me-in" not in liar.heads[-1]:
                challenge = f'Bearer realm="{realm}",service="tests",scope="repository:demo:pull"'
                return {"status": "401 Unauthorized", "WWW-Authenticate": challenge, "Content-Length": "0"}, b"", False
            return liar.honest(path, range_)

        liar.answer = answer
        reference = f"{liar.address}/demo@{DEMO.digest}"
        with pytest.raises(StoreUnavailable, match="gives no token"):
            await images.lease(reference, secret="ann:wrong")
        (await images.lease(reference, secret="ann:right")).release_nowait()
        assert any("/token?service=tests&scope=repository%3Ademo%3Apull" in head for head in liar.heads)

        realm = "http://192.0.2.1/token"  # plain HTTP, and not the registry: it gets no password
        with pytest.raises(StoreUnavailable, match="authentication that is not known"):
            await images.lease(f"{liar.address}/demo:other", secret="ann:right")


async def test_a_token_that_expires_in_the_middle_of_a_layer_is_fetched_anew_and_the_layer_goes_on(
    tmp_path: Path,
) -> None:
    tokens = 0
    asked: list[tuple[str, bool]] = []  # of the layer: the range, and whether the token still counted
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            nonlocal tokens
            if path.startswith("/token"):
                tokens += 1
                body = f'{{"token": "number-{tokens}"}}'.encode()
                return {"Content-Length": str(len(body))}, body, False
            counts = f"Bearer number-{tokens}" in liar.heads[-1]
            if path.endswith(LAYER):
                asked.append((range_, counts))
            if not counts:
                challenge = f'Bearer realm="http://{liar.address}/token",service="tests"'
                return {"status": "401 Unauthorized", "WWW-Authenticate": challenge, "Content-Length": "0"}, b"", False
            headers, body, hang = liar.honest(path, range_)
            if not path.endswith(LAYER):
                return headers, body, hang
            if not range_:  # half of it; then the connection breaks, and this token counts no longer
                tokens += 1
                return headers, body[: len(body) // 2], False
            start = int(range_.removeprefix("bytes=").rstrip("-"))
            left = body[start:]
            return {"Content-Length": str(len(left)), "status": "206 Partial Content"}, left, False

        liar.answer = answer
        lease = await images.lease(f"{liar.address}/demo@{DEMO.digest}", secret="ann:right")

        assert (Path(lease.image.root) / "etc/new").exists()
        rest = f"bytes={len(DEMO.blobs[LAYER]) // 2}-"
        assert asked[-3:] == [("", True), (rest, False), (rest, True)]
        lease.release_nowait()


async def test_credentials_that_expire_in_the_middle_of_a_pull_are_told_and_leave_nothing(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            expired = any(f"/blobs/{LAYER}" in head for head in liar.heads)
            if expired or "Basic YW5uOnJpZ2h0" not in liar.heads[-1]:
                told = {"status": "401 Unauthorized", "WWW-Authenticate": 'Basic realm="tests"', "Content-Length": "0"}
                return told, b"", False
            return liar.honest(path, range_)

        liar.answer = answer
        with pytest.raises(Unauthenticated, match="refuses these credentials"):
            await images.lease(f"{liar.address}/demo@{DEMO.digest}", secret="ann:right")

    assert nothing_left(tmp_path / "images")


async def test_another_tenants_image_is_not_handed_out_by_its_digest(registry: DebianRegistry, images: Images) -> None:
    await images.lease(registry.push("demo/private", DEMO))

    with pytest.raises(NotFound, match="a digest alone"):
        await images.lease(DEMO.digest)
    with pytest.raises(NotFound):
        await images.lease(f"{registry.address}/other/name@{DEMO.digest}")


async def test_only_allowed_registries_are_asked(images: Images, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"takes no images from registry\.example"):
        await images.lease("registry.example/a:1")
    with pytest.raises(InvalidSpec, match="names no registry"):
        await images.lease("debian:12")
    async with open_images(tmp_path / "other", ImagesConfig(loopback=False)) as strict:
        with pytest.raises(Refused):
            await strict.lease("127.0.0.1:5000/a:1")


# ---- what goes wrong ----


@needs_registry
@pytest.mark.parametrize(
    ("image", "kind", "said"),
    [
        (build(tar_of(file("../out"))), InvalidSpec, r'"\.\."'),
        (build(b"no tar" * 500), InvalidSpec, r"layer 1 \(sha256:.*\) has a header"),
        (build(tar_of(file("a")), diff_ids=[sha256(b"")]), BlobCorrupt, "decompressed: does not match"),
        (build(tar_of(file("a")), diff_ids=[]), InvalidSpec, "1 layers and its configuration names 0"),
        (
            build(tar_of(file("a")), layer_type="application/vnd.oci.image.layer.nondistributable.v1.tar"),
            InvalidSpec,
            "foreign",
        ),
        (build(tar_of(file("a")), layer_type="application/x-encrypted"), InvalidSpec, "unknown type"),
        (build(*[tar_of(file(f"f{n}")) for n in range(200)]), TooLarge, "images.limits.layers"),
        (build(tar_of(file("zeros", bytes(40 * MIB)))), TooLarge, "total_bytes"),
        (build(tar_of(file("zeros", bytes(40 * MIB))), how="zstd"), TooLarge, "total_bytes"),
        (build(tar_of(*(file(f"f{n}") for n in range(2000)))), TooLarge, "entries"),
    ],
)
async def test_a_bad_image_is_refused_by_name_and_leaves_nothing(
    registry: DebianRegistry, tmp_path: Path, image: BuiltImage, kind: type[CorralError], said: str
) -> None:
    reference = registry.push("demo/bad", image, tag=image.digest[7:20])
    async with open_images(tmp_path / "images", total_bytes=32 * MIB, entries=1000) as images:
        with pytest.raises(kind, match=said) as caught:
            await images.lease(reference)

    assert reference in caught.value.message
    assert nothing_left(tmp_path / "images")


async def test_an_unknown_image_and_a_registry_that_is_down_are_told_apart(
    registry: DebianRegistry, images: Images
) -> None:
    with pytest.raises(NotFound, match="no such image"):
        await images.lease(f"{registry.address}/demo/absent:1")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await images.lease("127.0.0.1:1/demo:1")


class Liar:
    """A registry that answers as it is told: path -> (status, headers, body, bytes sent before it hangs or leaves)."""

    def __init__(self, image: BuiltImage) -> None:
        self.image = image
        self.heads: list[str] = []
        self.answer: Callable[[str, str], tuple[dict[str, str], bytes, bool]] = self.honest
        self.address = ""

    def honest(self, path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
        name = path.rpartition("/")[2]
        body = self.image.blobs.get(name, self.image.manifest)
        return {"Content-Length": str(len(body))}, body, False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        ranges = [line.partition(": ")[2] for line in head.split("\r\n") if line.lower().startswith("range")]
        self.heads.append(head)
        headers, body, hang = self.answer(path, ranges[0] if ranges else "")
        status = headers.pop("status", "200 OK")
        lines = [f"HTTP/1.1 {status}", "Connection: close", *(f"{key}: {value}" for key, value in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        try:
            await writer.drain()
            if hang:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def lying(image: BuiltImage) -> AsyncIterator[Liar]:
    liar = Liar(image)
    server = await asyncio.start_server(liar.serve, "127.0.0.1", 0)
    liar.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield liar


LAYER = next(reversed(DEMO.blobs))


@pytest.mark.parametrize("lied", ["manifest", "config", "layer"])
async def test_a_digest_that_lies_at_any_layer_is_found(tmp_path: Path, lied: str) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            headers, body, hang = liar.honest(path, range_)
            kind = "manifest" if "manifests" in path else "layer" if body[:2] == b"\x1f\x8b" else "config"
            return headers, (body[:-2] + bytes([body[-2] ^ 1]) + body[-1:] if kind == lied else body), hang

        liar.answer = answer
        with pytest.raises(BlobCorrupt, match="does not match its digest"):
            await images.lease(f"{liar.address}/demo@{DEMO.digest}")

    assert nothing_left(tmp_path / "images")


async def test_a_wrong_length_and_too_many_bytes_are_found(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:
        reference = f"{liar.address}/demo@{DEMO.digest}"
        size = len(DEMO.blobs[LAYER])
        liar.answer = lambda path, range_: (
            ({"Content-Length": str(size + 5)}, DEMO.blobs[LAYER] + b"12345", False)
            if path.endswith(LAYER)
            else liar.honest(path, range_)
        )
        with pytest.raises(BlobCorrupt, match=f"sends {size + 5} bytes"):
            await images.lease(reference)
        liar.answer = lambda path, range_: (
            ({}, DEMO.blobs[LAYER] + bytes(3 * MIB), False) if path.endswith(LAYER) else liar.honest(path, range_)
        )
        with pytest.raises(BlobCorrupt, match="longer than"):
            await images.lease(reference)

    assert nothing_left(tmp_path / "images")


async def test_a_transfer_that_breaks_off_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:
        asked: list[str] = []

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            headers, body, hang = liar.honest(path, range_)
            if not path.endswith(LAYER):
                return headers, body, hang
            asked.append(range_)
            start = int(range_.removeprefix("bytes=").rstrip("-")) if range_ else 0
            left = body[start:]
            told = {"Content-Length": str(len(left)), "status": "206 Partial Content" if start else "200 OK"}
            return told, left[: 1 + len(left) // 2], False

        liar.answer = answer
        lease = await images.lease(f"{liar.address}/demo@{DEMO.digest}")

        assert (Path(lease.image.root) / "etc/new").exists()
        assert len(asked) > 2
        assert asked[1].startswith("bytes=")


async def test_a_registry_that_always_breaks_off_or_is_silent_is_given_up(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images", stall_s=0.3, tries=2) as images:
        reference = f"{liar.address}/demo@{DEMO.digest}"
        size = str(len(DEMO.blobs[LAYER]))
        for hang, said in ((False, "broke off|cannot be reached"), (True, "was silent for")):
            liar.answer = lambda path, range_, hang=hang: (  # type: ignore[misc]
                ({"Content-Length": size}, b"", hang) if path.endswith(LAYER) else liar.honest(path, range_)
            )
            with pytest.raises(StoreUnavailable, match=said):
                await images.lease(reference)

    assert nothing_left(tmp_path / "images")


async def test_ten_thousand_layers_are_refused_before_any_is_fetched(tmp_path: Path) -> None:
    many = build(*[b""] * 10_000, how="")
    async with lying(many) as liar, open_images(tmp_path / "images") as images:
        with pytest.raises(TooLarge, match=r"has 10000 layers; images\.limits\.layers is 128"):
            await images.lease(f"{liar.address}/demo@{many.digest}")

        assert not any(f"/blobs/{sha256(b'')}" in head for head in liar.heads)
    assert nothing_left(tmp_path / "images")


async def test_lists_in_lists_and_documents_without_end_are_refused(tmp_path: Path) -> None:
    inner = index_of(amd64=DEMO)
    outer = index_of(amd64=inner)
    async with lying(DEMO) as liar, open_images(tmp_path / "images", document_bytes=5000) as images:
        documents = {outer.digest: outer.manifest, inner.digest: inner.manifest}
        hidden = {**json.loads(outer.manifest)}
        hidden["manifests"][0]["mediaType"] = DEMO.media_type  # the outer one lies about what the inner one is
        lie = json.dumps(hidden).encode()
        documents["lie"] = lie

        def answer(path: str, range_: str) -> tuple[dict[str, str], bytes, bool]:
            body = documents.get(path.rpartition("/")[2], bytes(6000))
            return {"Content-Length": str(len(body))}, body, False

        liar.answer = answer
        for wanted in (f"demo@{outer.digest}", "demo:lie"):
            with pytest.raises(InvalidSpec, match="list of images inside a list"):
                await images.lease(f"{liar.address}/{wanted}")
        with pytest.raises(TooLarge, match="more than 5000 bytes"):
            await images.lease(f"{liar.address}/demo:endless")


@pytest.mark.parametrize("status", ["403 Forbidden", "429 Too Many Requests", "500 Internal Server Error", "302 Found"])
async def test_a_refusal_of_the_registry_is_typed(images: Images, status: str) -> None:
    expected = {"403": Refused, "429": StoreUnavailable, "500": StoreUnavailable, "302": StoreUnavailable}[status[:3]]
    async with lying(DEMO) as liar:
        headers = {"status": status, "Content-Length": "3", "Location": "http://192.0.2.1/elsewhere"}
        liar.answer = lambda path, range_: (dict(headers), b"no!", False)

        with pytest.raises(expected, match=f"image {liar.address}/demo"):
            await images.lease(f"{liar.address}/demo:1")


async def test_time_is_a_limit(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images", prepare_within_s=1.0) as images:
        size = str(len(DEMO.blobs[LAYER]))
        liar.answer = lambda path, range_: (
            ({"Content-Length": size}, b"", True) if path.endswith(LAYER) else liar.honest(path, range_)
        )
        with pytest.raises(TooLarge, match="prepare_within_s"):
            await images.lease(f"{liar.address}/demo@{DEMO.digest}")

    assert nothing_left(tmp_path / "images")


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(  # noqa: ASYNC221 (nothing else runs here)
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        image = build(tar_of(file("big", os.urandom(8 * MIB))))
        layout = write_layout(tmp_path / "layout", image, "1")
        for keep_free_bytes, said in ((0, "disk .* is full"), (64 * MIB, "keep_free_bytes")):
            async with open_images(small / "images", ImagesConfig(keep_free_bytes=keep_free_bytes)) as images:
                with pytest.raises(QuotaExceeded, match=said):
                    await images.take(LayoutPlace(path=str(layout)), "1", name="big")
            assert nothing_left(small / "images")
    finally:
        subprocess.run(["umount", str(small)], check=True)  # noqa: ASYNC221


# ---- ends in the middle ----


async def test_who_stops_waiting_ends_a_preparation_that_nobody_else_wants(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:
        reference = f"{liar.address}/demo@{DEMO.digest}"
        size = str(len(DEMO.blobs[LAYER]))
        liar.answer = lambda path, range_: (
            ({"Content-Length": size}, b"", True) if path.endswith(LAYER) else liar.honest(path, range_)
        )
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_leased(images, reference, lambda _: begun.set()))
            await begun.wait()
            waiting.cancel()
        liar.answer = liar.honest

        lease = await images.lease(reference)  # anew, as soon as the old one has gone

        assert lease.image.digest == DEMO.digest
        assert os.listdir(tmp_path / "images" / "tmp") == []


async def test_half_done_work_of_one_that_was_killed_is_removed_at_the_next_start(tmp_path: Path) -> None:
    async with lying(DEMO) as liar:
        size = str(len(DEMO.blobs[LAYER]))
        liar.answer = lambda path, range_: (
            ({"Content-Length": size}, b"", True) if path.endswith(LAYER) else liar.honest(path, range_)
        )
        program = (
            "import asyncio, sys\n"
            "from pathlib import Path\n"
            "from corral.images.adapters.sources import resolve\n"
            "from corral.images.model import ImagesConfig, Platform\n"
            "from corral.images.service import Images\n"
            "from corral.kernel.clock import SystemClock\n"
            "async def main():\n"
            "    config, place, clock = ImagesConfig(), Path(sys.argv[1]), SystemClock()\n"
            "    async with Images(config, place, clock=clock, platform=Platform(), resolve=resolve) as images:\n"
            "        await images.lease(sys.argv[2], on_progress=lambda _: print('begun', flush=True))\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(tmp_path / "images"), f"{liar.address}/demo@{DEMO.digest}"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) == 1

        process.send_signal(signal.SIGKILL)
        await process.communicate()

        await asyncio.to_thread(psutil.wait_procs, below, timeout=10)
        assert not below[0].is_running()
        assert len(os.listdir(tmp_path / "images" / "tmp")) == 1
        async with open_images(tmp_path / "images"):
            assert nothing_left(tmp_path / "images")


async def test_work_of_a_living_process_is_not_swept(tmp_path: Path) -> None:
    async with lying(DEMO) as liar, open_images(tmp_path / "images") as images:
        size = str(len(DEMO.blobs[LAYER]))
        liar.answer = lambda path, range_: (
            ({"Content-Length": size}, b"", True) if path.endswith(LAYER) else liar.honest(path, range_)
        )
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_leased(images, f"{liar.address}/demo@{DEMO.digest}", lambda _: begun.set()))
            await begun.wait()
            async with open_images(tmp_path / "images"):
                assert len(os.listdir(tmp_path / "images" / "tmp")) == 1
            waiting.cancel()


# ---- eviction ----


async def test_what_is_in_use_stays_and_what_is_idle_goes(registry: DebianRegistry, tmp_path: Path) -> None:
    used, warm, idle, pinned = (build(tar_of(file(name, name.encode()))) for name in ("used", "warm", "idle", "pinned"))
    standing: list[str] = []
    config = ImagesConfig(idle_s=1e-6, pinned=(f"{registry.address}/demo/pinned:1",))
    async with open_images(tmp_path / "images", config, in_use=lambda: standing) as images:
        leases = {
            name: await images.lease(registry.push(f"demo/{name}", image))
            for name, image in (("used", used), ("warm", warm), ("idle", idle), ("pinned", pinned))
        }
        standing.append(leases["warm"].image.root)
        for name in ("warm", "idle", "pinned"):
            leases[name].release_nowait()
        async with open_images(tmp_path / "images", ImagesConfig(idle_s=1e-6)) as other:
            await other.clean()  # another process leaves alone what we use
            with pytest.raises(Conflict, match="in use"):
                await other.remove(used.digest)

        assert await images.clean() == 1

        assert {image.digest for image in images.list()} == {used.digest, warm.digest, pinned.digest}
        with pytest.raises(Conflict, match="in use"):
            await images.remove(warm.digest)
        leases["used"].release_nowait()
        await images.remove(used.digest)
        with pytest.raises(NotFound):
            await images.remove(used.digest)
        again = await images.lease(f"{registry.address}/demo/idle:1")
        assert os.listdir(again.image.root) == ["idle"]


async def test_compressed_bytes_behind_the_stream_do_not_matter_but_their_digest_does(
    registry: DebianRegistry, images: Images
) -> None:
    layer = tar_of(file("a", b"x"))
    members = compress(layer[:600], "gzip") + compress(layer[600:], "gzip") + bytes(100)
    image = build(layer)
    config, _ = image.blobs.items()
    manifest = json.loads(image.manifest)
    manifest["layers"][0].update(digest=sha256(members), size=len(members))
    padded = BuiltImage(
        manifest=json.dumps(manifest).encode(),
        media_type=image.media_type,
        blobs={config[0]: config[1], sha256(members): members},
    )

    lease = await images.lease(registry.push("demo/members", padded))

    assert (Path(lease.image.root) / "a").read_bytes() == b"x"


async def test_an_image_of_nothing_but_links_is_fine(registry: DebianRegistry, images: Images) -> None:
    lease = await images.lease(registry.push("demo/links", build(tar_of(symlink("a", "b")))))

    assert os.listdir(lease.image.root) == ["a"]
