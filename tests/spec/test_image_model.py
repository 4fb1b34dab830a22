"""References, manifests and who is evicted: the decisions about images, without any image."""

import json
from typing import Any

import pytest

from corral.images.machine import located, pick, plan_eviction, read_document, read_image
from corral.images.model import (
    ImageLimits,
    ImageRecord,
    ImagesConfig,
    Platform,
    PreparedImage,
    Reference,
    is_loopback,
)
from corral.kernel.errors import CorralError, InvalidSpec, Refused, TooLarge

D = "sha256:" + "a" * 64
E = "sha256:" + "b" * 64
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("debian:12", ("", "debian", "12", "")),
        ("debian", ("", "debian", "", "")),
        ("a/b_c/d-e:T.1_x", ("", "a/b_c/d-e", "T.1_x", "")),
        (f"a@{D}", ("", "a", "", D)),
        (f"a:1@{D}", ("", "a", "1", D)),
        ("localhost/a", ("localhost", "a", "", "")),
        ("127.0.0.1:5000/a/b:1", ("127.0.0.1:5000", "a/b", "1", "")),
        ("[::1]:5000/a", ("[::1]:5000", "a", "", "")),
        (f"registry.example/a@{D}", ("registry.example", "a", "", D)),
        (D, ("", "", "", D)),
    ],
)
def test_a_reference_is_read_as_everybody_reads_it(text: str, parts: tuple[str, str, str, str]) -> None:
    read = Reference.parse(text)

    assert (read.registry, read.repository, read.tag, read.digest) == parts
    assert Reference.parse(str(read)) == Reference.parse(str(Reference.parse(str(read))))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "A",
            "a:",
            "a:b:c",
            "a@",
            "a@sha256:12",
            f"a@{D}0",
            "a b",
            "a/../b",
            "/a",
            "a/",
            "host:0/a",
            "host:99999/a",
        ),
        *("a\nb", "a" * 600, "-a:1", "a:.x", "ho st:1/a", "a//b", f"@{D}", "oci:/dir", "host.example:x/a"),
    ],
)
def test_what_is_no_reference_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^image: ") as caught:
        Reference.parse(text)

    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_only_this_machine_is_loopback() -> None:
    assert all(is_loopback(each) for each in ("localhost", "localhost:1", "127.0.0.1:5", "127.8.9.1", "[::1]:5"))
    assert not any(
        is_loopback(each) for each in ("localhost.example", "10.0.0.1:5", "[2001:db8::1]", "127.0.0.1.example")
    )


def test_the_policy_says_where_images_come_from() -> None:
    config = ImagesConfig(registries=("registry.example:443",), default_registry="registry.example:443/library")

    assert located(Reference.parse("debian:12"), config) == ("registry.example:443", "library/debian", False)
    assert located(Reference.parse("registry.example:443/a"), config) == ("registry.example:443", "a", False)
    assert located(Reference.parse("127.0.0.1:5000/a"), config) == ("127.0.0.1:5000", "a", True)
    for text in ("registry.example/a", "registry.example:444/a", "evil.example/a"):
        with pytest.raises(Refused, match=r"images\.registries|takes no images"):
            located(Reference.parse(text), config)


def document(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


def descriptor(digest: str = D, size: Any = 10, kind: str = LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size, **more}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        document(schemaVersion=1),
        document(layers=[descriptor(digest="md5:1")], config=descriptor()),
        document(layers=[descriptor(size=-1)], config=descriptor()),
        document(layers=[descriptor(size="10")], config=descriptor()),
        document(manifests=[descriptor()], layers=[]),
        document(mediaType=MANIFEST, manifests=[]),
        document(mediaType=INDEX, layers=[], config=descriptor()),
    ],
)
def test_a_document_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidSpec, match="image x"):
        read_document(data, subject="image x")


def test_a_list_of_images_gives_the_one_for_the_platform() -> None:
    arm = descriptor(E, platform={"os": "linux", "architecture": "arm64"}, kind=MANIFEST)
    amd = descriptor(D, platform={"os": "linux", "architecture": "amd64"}, kind=MANIFEST)
    read = read_document(document(manifests=[arm, amd]), subject="image x")

    assert pick(read, Platform(), subject="image x").digest == D
    windows = read_document(
        document(manifests=[descriptor(platform={"os": "windows", "architecture": "amd64"})]), subject="image x"
    )
    with pytest.raises(InvalidSpec, match="no image for linux/amd64; it offers windows/amd64"):
        pick(windows, Platform(), subject="image x")


@pytest.mark.parametrize(
    ("layers", "diff_ids", "kind", "said"),
    [
        ([descriptor()] * 129, [D] * 129, TooLarge, "limits.layers"),
        ([descriptor(size=2**40)], [D], TooLarge, "limits.total_bytes"),
        ([descriptor(urls=["https://elsewhere.example/x"])], [D], InvalidSpec, "foreign"),
        ([descriptor(kind="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")], [D], InvalidSpec, "foreign"),
        ([descriptor(kind="text/plain")], [D], InvalidSpec, "unknown type"),
        ([descriptor()], [], InvalidSpec, "configuration names 0"),
        ([descriptor()], ["x"], InvalidSpec, "configuration names 1"),
    ],
)
def test_layers_that_are_not_carried_are_refused(
    layers: list[dict[str, Any]], diff_ids: list[str], kind: type[CorralError], said: str
) -> None:
    read = read_document(document(layers=layers, config=descriptor()), subject="image x")
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}}).encode()

    with pytest.raises(kind, match=said):
        read_image(read, config, digest=D, platform=Platform(), limits=ImageLimits(), subject="image x")


def prepared(name: str, *, used_s: float, size: int = 10, pinned: bool = False) -> PreparedImage:
    record = ImageRecord(
        digest=name, platform=Platform(), size_bytes=size, entries=1, layers=1, prepared_s=0.0, pinned=pinned
    )
    return PreparedImage(record=record, root=f"/{name}", used_s=used_s)


def test_the_idle_go_and_then_the_least_recently_used_until_the_budget_holds() -> None:
    images = [
        prepared("old", used_s=0),
        prepared("old-pinned", used_s=0, pinned=True),
        prepared("old-busy", used_s=0),
        prepared("older", used_s=800),
        prepared("newer", used_s=900),
    ]
    config = ImagesConfig(idle_s=500, budget_bytes=35)

    plan = plan_eviction(images, frozenset({"old-busy"}), config, now_s=1000)

    assert [(each.digest, each.why) for each in plan] == [("old", "idle"), ("older", "budget")]
    left = [image for image in images if image.digest not in {each.digest for each in plan}]
    assert plan_eviction(left, frozenset({"old-busy"}), config, now_s=1000) == ()


def test_a_configuration_that_cannot_work_is_refused() -> None:
    for wrong in (
        {"setid": "keep"},
        {"platform": "windows/amd64"},
        {"registries": ("https://x",)},
        {"directory": "relative"},
        {"preparing": 0},
        {"idle_s": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ImagesConfig(**wrong)
    with pytest.raises(InvalidSpec):
        ImagesConfig(pinned=("Not A Reference",))
