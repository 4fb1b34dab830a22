"""Files of this machine that the client writes: where a name may lead, and what is said when the disk refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from corral.kernel.errors import InvalidSpec


def safe_target(into: Path, name: str) -> Path:
    """The path of artifact ``name`` below ``into``. Raises InvalidSpec when it would leave ``into``."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\0" in name:
        raise InvalidSpec(f'artifact "{name}": its name leads out of {into}; it was not fetched', field="name")
    target = into.joinpath(*pure.parts)
    if not target.parent.resolve().is_relative_to(into.resolve()):
        raise InvalidSpec(f'artifact "{name}": a link in {into} leads elsewhere; it was not fetched', field="name")
    return target


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What this machine's file system refuses inside the block is the caller's to mend. Raises InvalidSpec."""
    try:
        yield
    except OSError as error:
        raise InvalidSpec(
            f"{error.filename or target}: cannot be written: {error.strerror}; it was not fetched",
            cure="name another directory with --output-dir, or free space on this machine's disk",
            field="output-dir",
        ) from error
