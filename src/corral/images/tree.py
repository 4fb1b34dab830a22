"""The file tree that layers are flattened into, written through directory descriptors.

The rule: no path of an archive is ever given to the kernel whole. Every component is opened on its own, relative to
the directory before it and without following links; a link on the way is resolved here, inside the tree, as a
process whose root the tree is would see it. So nothing outside can be read, written or linked, whatever a name says.

Who owned a file, who might write it and its set-id bits mean nothing on a root that is read-only and belongs to
nobody inside; they are not kept. Extended attributes are dropped.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from corral.images.model import ImageLimits, printable
from corral.images.streams import Budget
from corral.images.tar import Member, MemberKind
from corral.kernel.errors import InvalidSpec, TooLarge

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_MAX: Final = 96
_HOPS_MAX: Final = 40
_NAME_BYTES_MAX: Final = 255
_LINK_BYTES_MAX: Final = 4095
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."
_SET_ID: Final = 0o6000


class Tree:
    """One tree below an empty directory that is ours. Not for two threads at once.

    ``bytes`` and ``entries`` are what was written so far, counted against the limits.
    """

    def __init__(self, directory: str, limits: ImageLimits, *, subject: str, refuse_setid: bool = False) -> None:
        self._limits = limits
        self._subject = subject
        self._refuse_setid = refuse_setid
        self.bytes = Budget(limits.total_bytes, "total_bytes", subject)
        self.entries = Budget(limits.entries, "entries", subject)
        self._root = os.open(directory, _DIRECTORY)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._known: dict[str, str] = {"": ""}  # directories as named -> where they are
        self._hops = 0
        self._created: set[str] = set()  # by the layer that is being added

    def close(self) -> None:
        """Free the descriptors."""
        self._forget()
        os.close(self._root)

    def begin_layer(self) -> None:
        """What follows is of the next layer: its whiteouts hide what came before."""
        self._created.clear()

    def add(self, member: Member, content: Iterator[bytes]) -> None:
        """Add one member of the current layer.

        Raises: InvalidSpec for what no image may hold; TooLarge; OSError.
        """
        self.entries.take(1)
        path = self._clean(member.name)
        if not path:
            if member.kind is not MemberKind.DIRECTORY:
                raise self._wrong("names the root itself as something else than a directory")
            return
        parent, _, name = path.rpartition("/")
        if name.startswith(_WHITEOUT):
            self._whiteout(parent, name)
            return
        self._check_kind(member, path)
        where = self._directory(parent, create=True)
        assert where is not None  # created
        place = f"{where}/{name}" if where else name
        match member.kind:
            case MemberKind.DIRECTORY:
                self._add_directory(where, name, place)
            case MemberKind.SYMLINK:
                self._add_symlink(where, name, place, member.link)
            case MemberKind.HARD_LINK:
                self._add_hard_link(where, name, place, member.link)
            case _:
                self._add_file(where, name, place, member, content)
        self._created.add(place)

    # ---- names ----

    def _clean(self, name: bytes) -> str:
        """A relative path without ``.`` and empty parts. Raises InvalidSpec for anything that leads elsewhere."""
        text = os.fsdecode(name)
        if not name or "\0" in text:
            raise self._wrong("has a member without a right name")
        if text.startswith("/"):
            raise self._wrong(f'names "{printable(text)}", an absolute path')
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self._wrong(f'names "{printable(text)}", which leads out with ".."')
        if len(parts) > self._limits.depth:
            raise TooLarge(f"{self._subject}: passes images.limits.depth ({self._limits.depth})", limit="depth")
        if len(text) > _NAME_BYTES_MAX // 4 and any(len(os.fsencode(part)) > _NAME_BYTES_MAX for part in parts):
            raise self._wrong(f'names "{printable(text)}", longer than a file system takes')
        return "/".join(parts)

    def _check_kind(self, member: Member, path: str) -> None:
        if member.kind in (MemberKind.DEVICE, MemberKind.FIFO):
            what = f'"{printable(path)}", a {member.kind.value}'
            raise self._wrong(f"holds {what}; only files, directories and links are taken")
        if member.kind is MemberKind.FILE:
            if self._refuse_setid and member.mode & _SET_ID:
                raise self._wrong(f'holds "{printable(path)}" with a set-id bit, which images.setid refuses')
            if member.size_bytes > self._limits.file_bytes:
                raise TooLarge(
                    f'{self._subject}: "{printable(path)}" has {member.size_bytes} bytes and passes '
                    f"images.limits.file_bytes ({self._limits.file_bytes})",
                    limit="file_bytes",
                )

    def _wrong(self, how: str) -> InvalidSpec:
        return InvalidSpec(f"{self._subject}: {how}")

    # ---- directories ----

    def _directory(self, path: str, *, create: bool) -> str | None:
        """Where the directory that is named ``path`` lies, links on the way resolved; None when there is none."""
        known = self._known.get(path)
        if known is not None:
            return known
        parent, _, name = path.rpartition("/")
        where = self._directory(parent, create=create)
        if where is None:
            return None
        self._hops = 0  # of all links that this step leads through: links in links would cost without end
        found = self._step(where, name, create=create)
        if found is not None:
            self._known[path] = found
        return found

    def _step(self, where: str, name: str, *, create: bool) -> str | None:
        """From the directory at ``where`` to the directory ``name`` in it."""
        descriptor = self._descriptor(where)
        place = f"{where}/{name}" if where else name
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            if not create:
                return None
            self._make_directory(descriptor, name, place)
            return place
        if stat.S_ISDIR(status.st_mode):
            return place
        if stat.S_ISLNK(status.st_mode):
            return self._follow(where, os.readlink(name, dir_fd=descriptor), create=create)
        if not create:
            return None
        if place in self._created:
            raise self._wrong(f'names something below "{printable(place)}", which is a file of the same layer')
        os.unlink(name, dir_fd=descriptor)
        self._make_directory(descriptor, name, place)
        return place

    def _follow(self, where: str, target: str, *, create: bool) -> str | None:
        self._hops += 1
        if self._hops > _HOPS_MAX:
            raise self._wrong(f'has a loop of links at "{printable(where)}"')
        at: str | None = "" if target.startswith("/") else where
        for part in target.split("/"):
            if part in ("", "."):
                continue
            assert at is not None
            if part == "..":
                at = at.rpartition("/")[0]  # the root's parent is the root
                continue
            at = self._step(at, part, create=create)
            if at is None:
                return None
            if at.count("/") >= self._limits.depth:
                raise TooLarge(f"{self._subject}: passes images.limits.depth ({self._limits.depth})", limit="depth")
        return at

    def _make_directory(self, descriptor: int, name: str, place: str) -> None:
        os.mkdir(name, 0o755, dir_fd=descriptor)
        if place not in self._created:
            self.entries.take(1)
            self._created.add(place)

    def _descriptor(self, where: str) -> int:
        """A descriptor of the directory at ``where`` (no links in it); stays ours."""
        if not where:
            return self._root
        held = self._open.get(where)
        if held is not None:
            self._open.move_to_end(where)
            return held
        parent, _, name = where.rpartition("/")
        above = self._descriptor(parent)
        opened = os.open(name, _DIRECTORY, dir_fd=above)
        self._open[where] = opened
        if len(self._open) > _OPEN_MAX + self._limits.depth:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return opened

    def _forget(self) -> None:
        """Something that may have been a directory, or a link to one, is gone."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._known = {"": ""}

    # ---- members ----

    def _add_directory(self, where: str, name: str, place: str) -> None:
        status = self._status(where, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return
        if status is not None:
            self._remove(where, name, status)
        os.mkdir(name, 0o755, dir_fd=self._descriptor(where))
        self._known.pop(place, None)

    def _add_symlink(self, where: str, name: str, place: str, link: bytes) -> None:
        if not link or b"\0" in link or len(link) > _LINK_BYTES_MAX:
            raise self._wrong(f'holds the link "{printable(place)}" without a right target')
        self._make_room(where, name)
        os.symlink(link, os.fsencode(name), dir_fd=self._descriptor(where))

    def _add_hard_link(self, where: str, name: str, place: str, link: bytes) -> None:
        target = self._clean(link)
        parent, _, last = target.rpartition("/")
        found = self._directory(parent, create=False) if target else None
        status = self._status(found, last) if found is not None else None
        if found is None or status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise self._wrong(
                f'holds "{printable(place)}", a hard link to "{printable(target)}", which is no file here'
            )
        if place == (f"{found}/{last}" if found else last):
            return
        self._make_room(where, name)
        try:
            os.link(
                last,
                name,
                src_dir_fd=self._descriptor(found),
                dst_dir_fd=self._descriptor(where),
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno == errno.EMLINK:
                raise TooLarge(f'{self._subject}: has more links to "{printable(target)}" than a disk takes') from error
            if error.errno == errno.ENOENT:
                raise self._wrong(f'holds "{printable(place)}", a hard link to what it replaces') from error
            raise

    def _add_file(self, where: str, name: str, place: str, member: Member, content: Iterator[bytes]) -> None:
        self.bytes.take(max(0, member.size_bytes - member.stored_bytes))  # the holes; the rest was counted on its way
        mode = 0o755 if member.mode & 0o111 else 0o644
        try:
            file = os.open(name, _NEW_FILE, mode, dir_fd=self._descriptor(where))
        except FileExistsError:
            self._make_room(where, name)
            file = os.open(name, _NEW_FILE, mode, dir_fd=self._descriptor(where))
        try:
            if member.pieces is None:
                for piece in content:
                    _write_all(file, piece)
            else:
                _write_sparse(file, member, content)
            os.utime(file, (member.mtime_s, member.mtime_s))
        finally:
            os.close(file)

    def _make_room(self, where: str, name: str) -> None:
        status = self._status(where, name)
        if status is not None:
            self._remove(where, name, status)

    def _status(self, where: str, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._descriptor(where), follow_symlinks=False)
        except FileNotFoundError:
            return None

    # ---- removing ----

    def _remove(self, where: str, name: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            _remove_tree(self._descriptor(where), name)
            self._forget()
            gone = (f"{where}/{name}" if where else name) + "/"
            self._created = {place for place in self._created if not place.startswith(gone)}
            return
        os.unlink(name, dir_fd=self._descriptor(where))
        if stat.S_ISLNK(status.st_mode):
            self._forget()

    def _whiteout(self, parent: str, name: str) -> None:
        where = self._directory(parent, create=False)
        if name == _OPAQUE:
            if where is not None:
                self._hide_below(where)
                self._forget()
            return
        if name.startswith(_AUFS):
            return  # book-keeping of a union file system; it hides nothing
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise self._wrong(f'holds a whiteout of "{hidden}"')
        if where is None:
            return
        self._hide(where, hidden)
        self._forget()

    def _hide(self, where: str, name: str) -> bool:
        """Remove what lower layers put there; False when something of this layer stays."""
        place = f"{where}/{name}" if where else name
        status = self._status(where, name)
        if status is None:
            return True
        if not stat.S_ISDIR(status.st_mode):
            if place in self._created:
                return False
            os.unlink(name, dir_fd=self._descriptor(where))
            return True
        if not self._hide_below(place) or place in self._created:
            return False
        self._close_below(place)
        os.rmdir(name, dir_fd=self._descriptor(where))
        return True

    def _hide_below(self, where: str) -> bool:
        names = os.listdir(self._descriptor(where))
        return all([self._hide(where, name) for name in names])

    def _close_below(self, where: str) -> None:
        with suppress(KeyError):
            os.close(self._open.pop(where))


def _remove_tree(above: int, name: str) -> None:
    """Remove a directory and what is in it; never follows a link."""
    directory = os.open(name, _DIRECTORY, dir_fd=above)
    try:
        for each in os.listdir(directory):
            try:
                os.unlink(each, dir_fd=directory)
            except IsADirectoryError:
                _remove_tree(directory, each)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=above)


def _write_all(file: int, piece: bytes) -> None:
    written = os.write(file, piece)
    while written < len(piece):
        piece = piece[written:]
        written = os.write(file, piece)


def _write_sparse(file: int, member: Member, content: Iterator[bytes]) -> None:
    os.ftruncate(file, member.size_bytes)
    places = iter(member.pieces or ())
    offset, left = 0, 0
    for piece in content:
        data = memoryview(piece)
        while data:
            while not left:
                offset, left = next(places)
            part = data[:left]
            done = os.pwrite(file, part, offset)
            offset, left, data = offset + done, left - done, data[done:]
