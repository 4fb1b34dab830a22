"""What the verbs share: the store of this user, with everything that a daemon still had in hand written down."""

import os
from dataclasses import dataclass
from pathlib import Path

from corral.compile.control import tell
from corral.compile.limits import CompileConfig
from corral.compile.records import Records
from corral.compile.settings import load_compile_config, store_directory
from corral.compile.store import ResultStore


@dataclass(frozen=True, slots=True)
class Local:
    """The store, the records, and what the daemon said of itself (None: there is none)."""

    config: CompileConfig
    directory: Path
    store: ResultStore
    records: Records
    daemon: dict[str, object] | None


def open_local() -> Local:
    """Raises CorralError."""
    config = load_compile_config(os.environ)
    daemon = tell(os.environ, "flush")
    # A daemon may have been started with another configuration; what it uses is what compiles see.
    directory = Path(str(daemon["store"])) if daemon is not None else store_directory(config, os.environ)
    store = ResultStore(directory, config)
    return Local(config, directory, store, Records(directory, records_max=config.records), daemon)
