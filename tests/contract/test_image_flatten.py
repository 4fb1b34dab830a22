"""Layers become one tree: what later layers hide, what no image may hold, and that nothing outside is touched."""

import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from corral.images.model import MIB, ImageLimits
from corral.images.streams import ExactReader
from corral.images.tar import TarMistake, TarReader
from corral.images.tree import Tree
from corral.kernel.errors import InvalidSpec, TooLarge
from corral.testing.images import directory, entry, file, hard_link, symlink, tar_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    path = tmp_path / "root"
    path.mkdir()
    return path


Flatten = Callable[..., Path]


@pytest.fixture
def flatten(root: Path) -> Flatten:
    def add(*layers: bytes, limits: ImageLimits | None = None, refuse_setid: bool = False) -> Path:
        tree = Tree(str(root), limits or ImageLimits(), subject="image test", refuse_setid=refuse_setid)
        try:
            for layer in layers:
                tree.begin_layer()
                archive = TarReader(ExactReader(iter([layer])))
                for member in archive:
                    tree.add(member, archive.content())
        finally:
            tree.close()
        return root

    return add


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def limits(**some: float) -> ImageLimits:
    return msgspec.structs.replace(ImageLimits(), **some)


def untouched(root: Path) -> bool:
    outside = root.parent / "outside"
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "secret"


# ---- layers over layers ----


def test_files_directories_and_links_arrive_as_they_are(flatten: Flatten) -> None:
    root = flatten(
        tar_of(directory("./"), directory("usr/"), file("usr/tool", b"#!", mode=0o755), file("./etc/conf", b"x")),
        tar_of(symlink("bin", "usr"), hard_link("usr/same", "usr/tool")),
    )

    assert names(root) == {"usr", "usr/tool", "usr/same", "etc", "etc/conf", "bin"}
    assert os.readlink(root / "bin") == "usr"
    assert (root / "usr/same").stat().st_ino == (root / "usr/tool").stat().st_ino
    assert (root / "usr/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/conf").stat().st_mode & 0o777 == 0o644


def test_a_whiteout_hides_a_file_and_a_directory_of_lower_layers(flatten: Flatten) -> None:
    root = flatten(
        tar_of(file("a/one"), file("a/two"), file("b/deep/er")),
        tar_of(file("a/.wh.one"), file(".wh.b"), file("c/.wh.absent")),
    )

    assert names(root) == {"a", "a/two"}


def test_a_whiteout_spares_what_its_own_layer_brings_in_either_order(flatten: Flatten) -> None:
    root = flatten(
        tar_of(file("a/old"), file("b/old")),
        tar_of(file("a/new"), file(".wh.a"), file(".wh.b"), file("b/new")),
    )

    assert names(root) == {"a", "a/new", "b", "b/new"}


def test_an_opaque_directory_hides_everything_below_but_its_own_layer(flatten: Flatten) -> None:
    root = flatten(
        tar_of(file("a/old"), file("a/sub/old"), file("b/kept")),
        tar_of(directory("a"), file("a/sub/new"), file("a/.wh..wh..opq"), file(".wh..wh.plnk")),
    )

    assert names(root) == {"a", "a/sub", "a/sub/new", "b", "b/kept"}


def test_kinds_replace_one_another(flatten: Flatten) -> None:
    root = flatten(
        tar_of(file("a/in"), file("b"), symlink("c", "b"), directory("d")),
        tar_of(file("a", b"file now"), directory("b"), file("c", b"no link"), symlink("d", "a")),
    )

    assert names(root) == {"a", "b", "c", "d"}
    assert (root / "a").read_bytes() == b"file now"
    assert not (root / "c").is_symlink()
    assert (root / "d").is_symlink()


def test_a_file_that_is_replaced_leaves_its_hard_links_alone(flatten: Flatten) -> None:
    root = flatten(tar_of(file("a", b"old"), hard_link("b", "a")), tar_of(file("a", b"new")))

    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"new", b"old")


def test_of_two_entries_with_one_name_the_last_one_stands(flatten: Flatten) -> None:
    root = flatten(tar_of(file("a", b"first"), file("a", b"second"), directory("d"), directory("d/")))

    assert (root / "a").read_bytes() == b"second"


def test_names_below_a_link_go_where_the_link_leads_inside(flatten: Flatten) -> None:
    root = flatten(
        tar_of(directory("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")),
        tar_of(file("lib/one"), file("abs/two"), hard_link("three", "lib/one")),
    )

    assert {"usr/lib/one", "usr/lib/two", "three"} <= names(root)
    assert (root / "lib").is_symlink()


# ---- hostile ----


@pytest.mark.parametrize("target", ["../outside", "/../outside", "../../../../../../../../outside", "a/../../outside"])
def test_a_link_that_leads_out_leads_to_the_root(flatten: Flatten, root: Path, target: str) -> None:
    flatten(tar_of(directory("a"), symlink("way", target), file("way/planted", b"x")))

    assert untouched(root)
    assert (root / "outside" / "planted").read_bytes() == b"x"


def test_a_link_to_an_absolute_directory_of_the_host_is_one_inside(flatten: Flatten, root: Path) -> None:
    flatten(tar_of(symlink("way", str(root.parent / "outside")), file("way/planted", b"x")))

    assert untouched(root)


def test_a_file_over_a_link_replaces_the_link_and_not_its_target(flatten: Flatten, root: Path) -> None:
    flatten(tar_of(symlink("secret", "../outside/secret"), file("secret", b"mine")))

    assert untouched(root)
    assert (root / "secret").read_bytes() == b"mine"


def test_a_whiteout_through_a_link_stays_inside(flatten: Flatten, root: Path) -> None:
    flatten(tar_of(symlink("way", "../outside")), tar_of(file("way/.wh.secret"), file("way/.wh..wh..opq")))

    assert untouched(root)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (file("../outside/planted"), r'"\.\."'),
        (file("a/../../outside/planted"), r'"\.\."'),
        (file("/etc/planted"), "absolute"),
        (file("a" * 300), "longer"),
        (entry("dev/sda", tarfile.BLKTYPE), "device node"),
        (entry("dev/null", tarfile.CHRTYPE), "device node"),
        (entry("pipe", tarfile.FIFOTYPE), "fifo"),
        (hard_link("stolen", "../outside/secret"), r'"\.\."'),
        (hard_link("stolen", "/outside/secret"), "absolute"),
        (hard_link("stolen", "absent"), "no file here"),
        (hard_link("stolen", "folder"), "no file here"),
        (symlink("link", ""), "without a right target"),
        (file(".wh..."), "whiteout"),
        (file(".wh.."), "whiteout"),
        (file("plain/below"), "file of the same layer"),
        (symlink(".", "elsewhere"), "root itself"),
    ],
)
def test_what_no_image_may_hold_is_refused_and_named(
    flatten: Flatten, root: Path, member: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], said: str
) -> None:
    with pytest.raises(InvalidSpec, match=f"image test: .*{said}"):
        flatten(tar_of(directory("folder"), file("plain"), member))

    assert untouched(root)


def test_a_hard_link_through_a_link_that_leads_out_finds_nothing(flatten: Flatten, root: Path) -> None:
    with pytest.raises(InvalidSpec, match="no file here"):
        flatten(tar_of(symlink("way", "../outside"), hard_link("stolen", "way/secret")))


def test_links_in_a_circle_and_links_that_multiply_end(flatten: Flatten) -> None:
    with pytest.raises(InvalidSpec, match="loop of links"):
        flatten(tar_of(symlink("a", "b"), symlink("b", "a"), file("a/x")))
    bomb = [symlink("l0", ".")] + [symlink(f"l{n}", "/".join([f"l{n - 1}"] * 500)) for n in range(1, 12)]
    with pytest.raises(InvalidSpec, match="loop of links"):
        flatten(tar_of(*bomb, file("l11/x")))


def test_setid_bits_are_stripped_or_refused(flatten: Flatten, root: Path) -> None:
    layer = tar_of(file("bin/su", b"x", mode=0o4755))
    flatten(layer)

    assert stat.S_IMODE((root / "bin/su").stat().st_mode) == 0o755
    with pytest.raises(InvalidSpec, match="set-id"):
        flatten(layer, refuse_setid=True)


def test_extended_attributes_and_owners_are_dropped(flatten: Flatten, root: Path) -> None:
    info, content = file("cap", b"x", mode=0o777)
    info.pax_headers = {"SCHILY.xattr.user.planted": "1", "SCHILY.xattr.security.capability": "x"}
    info.uid = info.gid = 12345

    flatten(tar_of((info, content)))

    assert os.listxattr(root / "cap") == []
    status = (root / "cap").stat()
    assert (status.st_uid, status.st_mode & 0o022) == (os.geteuid(), 0)


# ---- limits ----


def test_each_limit_ends_a_bomb_and_is_named(flatten: Flatten) -> None:
    many = tar_of(*(file(f"f{n}") for n in range(50)))
    with pytest.raises(TooLarge, match="entries"):
        flatten(many, limits=limits(entries=49))
    with pytest.raises(TooLarge, match="file_bytes"):
        flatten(tar_of(file("big", b"x" * 1001)), limits=limits(file_bytes=1000))
    with pytest.raises(TooLarge, match="depth"):
        flatten(tar_of(file("/".join("abcdefgh"))), limits=limits(depth=7))
    with pytest.raises(TooLarge, match="entries"):  # directories that only a path names
        flatten(tar_of(*(file(f"{n}/{n}/{n}/x") for n in range(20))), limits=limits(entries=40))


def test_the_holes_of_a_sparse_file_count(flatten: Flatten) -> None:
    with pytest.raises(TooLarge, match="total_bytes"):
        flatten(_sparse_member("holes", MIB, [(0, b"x")]), limits=limits(total_bytes=1000))


def test_links_do_not_make_a_tree_deeper_than_its_limit(flatten: Flatten) -> None:
    layers = [tar_of(directory("a/a/a/a"), symlink("s", "a/a/a/a"))]
    layers += [
        tar_of(directory("s/b/b/b"), symlink("s2", "s/b/b/b")),
        tar_of(directory("s2/c/c/c"), file("s2/c/c/c/x")),
    ]

    with pytest.raises(TooLarge, match="depth"):
        flatten(*layers, tar_of(symlink("s3", "s2/c/c/c"), file("s3/x")), limits=limits(depth=8))


# ---- archives ----


def _sparse_member(name: str, size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    """GNU's format 1.0 in a pax archive."""
    numbers = [len(pieces)] + [number for offset, data in pieces for number in (offset, len(data))]
    head = "".join(f"{number}\n" for number in numbers).encode()
    info, content = file("GNUSparseFile.0/x", head + bytes(-len(head) % 512) + b"".join(data for _, data in pieces))
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size),
    }
    return tar_of((info, content))


def test_a_sparse_file_keeps_its_holes(flatten: Flatten, root: Path) -> None:
    flatten(_sparse_member("holes", 8 * MIB, [(0, b"start"), (4 * MIB, b"middle")]))

    data = (root / "holes").read_bytes()
    assert len(data) == 8 * MIB
    assert data.startswith(b"start\0")
    assert data[4 * MIB : 4 * MIB + 7] == b"middle\0"
    assert (root / "holes").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_arrive_in_every_format(flatten: Flatten, root: Path, kind: int) -> None:
    folder = "d" * 90
    long = f"{folder}/{'n' * (90 if kind == tarfile.USTAR_FORMAT else 200)}"

    flatten(tar_of(directory(folder), file(long, b"x"), format=kind))

    assert (root / long).read_bytes() == b"x"


def test_an_archive_of_gnu_tar_with_holes_and_odd_names_arrives(flatten: Flatten, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as out:
        for n in range(40):
            out.seek(n * 65536)
            out.write(b"piece%d" % n)
        out.truncate(4 * MIB)
    (source / os.fsdecode(b"odd\xff\nname")).write_bytes(b"x")
    for number, form in enumerate(("gnu", "posix")):
        packed = tmp_path / f"{number}.tar"
        subprocess.run(["tar", "-S", f"--format={form}", "-cf", packed, "-C", source, "."], check=True)
        flatten(packed.read_bytes())
        assert (root / "holes").read_bytes() == (source / "holes").read_bytes()
        assert (root / os.fsdecode(b"odd\xff\nname")).read_bytes() == b"x"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:700],
        lambda data: data[:100] + b"\xff" + data[101:],
        lambda data: data[:124] + b"9" * 12 + data[136:],
        lambda data: b"not a tar archive at all" * 50,
    ],
)
def test_a_broken_archive_is_a_mistake_and_not_a_crash(flatten: Flatten, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(TarMistake):
        flatten(spoil(tar_of(file("a", b"x" * 1000))))


def test_a_bomb_of_headers_is_a_mistake(flatten: Flatten) -> None:
    info, content = file("a", b"x")
    info.pax_headers = {"comment": "x" * (2 * MIB)}
    with pytest.raises(TarMistake, match="extended header"):
        flatten(tar_of((info, content)))


def test_a_sparse_map_that_lies_is_a_mistake(flatten: Flatten) -> None:
    for pieces in ([(100, b"a"), (50, b"b")], [(10_000, b"x")]):
        with pytest.raises(TarMistake, match="sparse"):
            flatten(_sparse_member("holes", 1000, pieces))
