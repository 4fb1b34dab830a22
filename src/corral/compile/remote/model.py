"""The nouns of remote compiles, and the port to the scheduler."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import msgspec

from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

OBJECT: Final = ".corral-object.o"
RULES: Final = ".corral-rules.d"
SOURCE: Final = ".corral-source.i"
"""Names in the directory of a compile, on the worker; nothing of a project is called so."""


_IMAGE: Final = re.compile(r"(?:[^@\s]+@)?sha256:[0-9a-f]{64}")


class SourceMode(StrEnum):
    """What is sent: the closure as files, or what the local preprocessor made of it."""

    CAS = "cas"
    PREPROCESSED = "preprocessed"


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Compiles on the fleet.

    Attributes:
        scheduler: URL of the scheduler's REST; "" keeps all compiles here.
        token: the tenant's token, ``env:NAME``, ``file:PATH`` or the token itself; "" sends none.
        ca_file: PEM file of the CA of an ``https://`` scheduler; "" for those that this machine trusts.
        fingerprint: SHA-256 of its certificate, instead of a CA.
        tenant: whose cache and sandboxes; must be the token's.
        image: the tool chain's image, with its digest (``gcc@sha256:…``); "" runs on the worker's own root, whose tool
            chain must be the same as here.
        source_mode: "cas" or "preprocessed".
        slots: most executions at once.
        idle_s: slots that nobody used for so long are given back.
        answer_s: the longest wait for a worker's answer.
        paranoid: take nothing that its worker did not sign.
    """

    scheduler: str = ""
    token: str = ""
    ca_file: str = ""
    fingerprint: str = ""
    tenant: str = "default"
    image: str = ""
    source_mode: SourceMode = SourceMode.CAS
    slots: int = 64
    idle_s: float = 5.0
    answer_s: float = 600.0
    paranoid: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= 256:
            raise ValueError("slots must be between 1 and 256")
        if self.image and _IMAGE.fullmatch(self.image) is None:
            raise ValueError(
                f'image: "{self.image[:100]}" has no digest, and a tag may be another tool chain tomorrow; '
                'write "name@sha256:…", which `corral image list` shows'
            )
        if self.idle_s <= 0 or self.answer_s <= 0:
            raise ValueError("idle_s and answer_s must be above 0 seconds")

    @property
    def image_digest(self) -> str:
        """``sha256:…``, "" without an image."""
        return self.image.rpartition("@")[2]

    def secret(self, environment: Mapping[str, str]) -> str:
        """The token itself. Raises InvalidSpec when it is not where ``token`` says."""
        kind, _, place = self.token.partition(":")
        if kind == "env":
            if not environment.get(place):
                raise InvalidSpec(f"compile.remote.token: the variable {place} is not set")
            return environment[place]
        if kind == "file":
            try:
                return Path(place).expanduser().read_text(encoding="utf-8").strip()
            except OSError as error:
                raise InvalidSpec(f"compile.remote.token: {place}: {error.strerror}") from error
        return self.token


class WorkerRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go, as the scheduler answers; see ``fleet.routes.Route``. ``expires_in_s``: from the answer on, since
    the clocks of clients may say anything.
    """

    id: str
    worker_id: str
    address: str
    certificate_fingerprint: str
    token: str
    slots: int
    expires_in_s: float
    result_key: str = ""


class Routes(Protocol):
    """The scheduler, as remote compiles see it."""

    async def route(self, *, image: str, slots: int, avoid: Collection[str]) -> Sequence[WorkerRoute]:
        """At least one route. Raises NoFeasibleWorker, Unauthenticated, SchedulerUnavailable."""
        ...

    async def release(self, route_ids: Collection[str]) -> None:
        """Give routes back; unknown ones are no error. Raises SchedulerUnavailable."""
        ...

    async def close(self) -> None:
        """Free connections; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """A compile as an action.

    Attributes:
        messages: action, command and directories, encoded; small, and sent with every question.
        files: where the contents are; absolute paths by digest.
        contents: contents that are in memory.
        compiler: absolute path of the compiler, when the worker's own root must have the same; else "".
        identity: of the compiler here.
        tool_files: the files outside of the project that were read, with their hashes; () with an image.
    """

    action: Digest
    messages: tuple[bytes, ...]
    files: dict[Digest, str]
    contents: dict[Digest, bytes]
    compiler: str
    identity: str
    tool_files: tuple[tuple[str, str], ...]
