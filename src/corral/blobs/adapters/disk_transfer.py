"""One blob on its way to or from the disk. Runs in threads; nothing here awaits.

The event loop may be cancelled while a thread works for it. So every transfer has a lock: closing waits for the
step that runs, and a step that starts after closing finds it closed and does nothing.
"""

import os
import threading
from collections.abc import Sequence

from corral.blobs.adapters.disk_accounts import Accounts, incoming_name
from corral.blobs.adapters.disk_layout import MODES, DiskLayout, sync_directory
from corral.blobs.machine import PIECE_BYTES, content_differs, content_too_long
from corral.blobs.model import WritePolicy
from corral.kernel.digest import Digest, Digester, new_hasher
from corral.kernel.errors import NotFound, StoreUnavailable


class Upload:
    """A blob that is being written: reserved, then a half-written file, then (commit) a blob, or (discard) nothing.

    ``is_blob`` says that the half-written file became the blob; it does not when another process was faster.
    """

    def __init__(
        self,
        layout: DiskLayout,
        accounts: Accounts,
        *,
        incoming: str,
        number: int,
        tenant: str,
        digest: Digest,
        policy: WritePolicy,
    ) -> None:
        self.tenant = tenant
        self.digest = digest
        self.policy = policy
        self.is_blob = False
        self._layout = layout
        self._accounts = accounts
        self._digester = Digester(digest.function)
        self._temporary = f"{incoming}/{incoming_name(tenant, digest.size_bytes, number)}"
        self._descriptor = -1
        self._reserved = False
        self.closed = False
        self._lock = threading.Lock()

    def begin(self, quota_bytes: int | None) -> None:
        """Reserve room and open the half-written file. Raises QuotaExceeded, OSError."""
        self.reserve(quota_bytes)
        with self._lock:
            self._open()

    def reserve(self, quota_bytes: int | None) -> None:
        """Reserve room. Raises QuotaExceeded, OSError."""
        with self._lock:
            self._check_open()
            self._accounts.add(self.tenant, self.digest.size_bytes, quota_bytes=quota_bytes)
            self._reserved = True

    @staticmethod
    def reserve_together(uploads: "Sequence[Upload]", quota_bytes: int | None) -> None:
        """Reserve room for some of one tenant, which no step of anybody closes meanwhile. Raises as ``reserve``."""
        total_bytes = sum(each.digest.size_bytes for each in uploads)
        accounts, tenant = uploads[0]._accounts, uploads[0].tenant
        accounts.add(tenant, total_bytes, blobs=len(uploads), quota_bytes=quota_bytes)
        for each in uploads:
            each._reserved = True

    def append(self, pieces: list[bytes]) -> None:
        """Hash and write the next pieces. Raises InvalidSpec as soon as there is too much."""
        with self._lock:
            self._check_open()
            if self._digester.size_bytes + sum(map(len, pieces)) > self.digest.size_bytes:
                raise content_too_long(self.digest)
            for piece in pieces:
                self._digester.update(piece)
                self._write(piece)

    def fill(self, data: bytes, now_s: float) -> None:
        """Open the half-written file and write all of the content, which is verified. Raises OSError."""
        with self._lock:
            self._open()
            self._write(data)
            os.utime(self._descriptor, (now_s, now_s))

    def commit(self, now_s: float) -> None:
        """Verify, make durable (unless it is written back), make visible.

        Raises InvalidSpec when the content is not what was announced; OSError.
        """
        self.verify(now_s)
        if self.policy is WritePolicy.THROUGH:
            self.sync()
            sync_directory(self.publish())
        else:
            self.publish()

    def verify(self, now_s: float) -> None:
        """Raises InvalidSpec unless what was appended is what was announced."""
        with self._lock:
            self._check_open()
            if (found := self._digester.digest()) != self.digest:
                raise content_differs(self.digest, found=found)
            os.utime(self._descriptor, (now_s, now_s))

    def sync(self) -> None:
        """Make the half-written file durable. Raises OSError."""
        with self._lock:
            self._check_open()
            os.fsync(self._descriptor)

    def publish(self) -> str:
        """Make a verified upload visible; gives the folder that must be synced now unless it is written back."""
        with self._lock:
            self._check_open()
            shard = self._layout.shard(self.tenant, self.digest, self.policy)
            final = self._layout.blob(self.tenant, self.digest)
            if not os.path.lexists(final):  # else another process was faster: closing gives the room back
                self._rename(final, shard)
                self._reserved, self.is_blob = False, True
            self._close()
            return shard

    def discard(self) -> None:
        """Remove what is not committed; idempotent."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        self._check_open()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, MODES[self.policy])

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _rename(self, final: str, shard: str) -> None:
        try:
            os.rename(self._temporary, final)
        except FileNotFoundError:  # somebody removed a folder that had become empty
            os.makedirs(shard, 0o700, exist_ok=True)
            os.rename(self._temporary, final)

    def _close(self) -> None:
        self.closed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._reserved:
            self._reserved = False
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                pass  # opening it had failed
            finally:
                self._accounts.subtract(self.tenant, blobs=1, size_bytes=self.digest.size_bytes)

    def _check_open(self) -> None:
        if self.closed:
            raise StoreUnavailable("this upload was given up")


class Corrupt(Exception):
    """The bytes on the disk are not what their name says; ``reason`` says how. The store turns it into BlobCorrupt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Download:
    """A blob that is being read; a whole read is verified before its last piece leaves."""

    def __init__(self, path: str, digest: Digest, *, start: int, end: int, verify: bool) -> None:
        self._path = path
        self._digest = digest
        self._position = start
        self._end = end
        self._hasher = new_hasher(digest.function) if verify else None
        self._descriptor = -1
        self.closed = False
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Of the whole blob."""
        return self._digest.size_bytes

    @property
    def exhausted(self) -> bool:
        """Nothing is left to read."""
        return self._position >= self._end

    def begin(self) -> tuple[os.stat_result, bytes]:
        """Open; returns the status of the file and the first piece. Raises NotFound, Corrupt, OSError."""
        with self._lock:
            if self.closed:
                raise StoreUnavailable("this download was given up")
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise NotFound(f"no blob {self._digest}", digest=str(self._digest)) from None
            status = os.fstat(self._descriptor)
            if status.st_size != self._digest.size_bytes:
                raise Corrupt(f"{status.st_size} bytes are stored")
            return status, self._next()

    def next(self) -> bytes:
        """The next piece, empty at the end. Raises Corrupt, OSError."""
        with self._lock:
            return self._next()

    def touch(self, now_s: float) -> None:
        """Mark as used while a long read goes on."""
        with self._lock:
            if not self.closed:
                os.utime(self._descriptor, (now_s, now_s))

    def close(self) -> None:
        """Let go of the file; idempotent."""
        with self._lock:
            self._close()

    def _next(self) -> bytes:
        if self.closed:
            return b""
        piece = b""
        if wanted := min(PIECE_BYTES, self._end - self._position):
            piece = os.pread(self._descriptor, wanted, self._position)
            if not piece:
                raise Corrupt(f"it ends after {self._position} bytes")
            self._position += len(piece)
        if self._hasher is not None:
            self._hasher.update(piece)
        if self.exhausted:
            self._close()
            if self._hasher is not None and (found := self._hasher.digest().hex()) != self._digest.hash:
                raise Corrupt(f"its hash is {found}")
        return piece

    def _close(self) -> None:
        self.closed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
