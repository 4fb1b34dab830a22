"""The HTTP caches, put together."""

from pathlib import Path

from corral.blobs.ports import BlobStore
from corral.database.engine import Database
from corral.doors.http_cache.config import HttpCacheConfig
from corral.doors.http_cache.service import HttpCache
from corral.doors.http_cache.sql import SqlEntries
from corral.kernel.clock import Clock


def make_http_cache(
    database: Database, blobs: BlobStore, clock: Clock, config: HttpCacheConfig, data: Path
) -> HttpCache:
    """The service over the database and the store. What it spools are unnamed files: they leave with their process."""
    spool_dir = data / "spool"
    spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return HttpCache(SqlEntries(database), blobs, clock, config, spool_dir=spool_dir)
