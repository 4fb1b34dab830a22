"""The public SDK's front: one object, one connection, everything a user can do."""

from typing import Self

from corral.client.actions import Actions
from corral.client.artifacts import Artifacts
from corral.client.blobs import RestBlobs
from corral.client.connection import Connection
from corral.client.fleet import Records, Workers
from corral.client.functions import Functions
from corral.client.logs import Logs
from corral.client.tasks import Tasks
from corral.client.upload import Uploads


class Corral:
    """A client of one scheduler; use it as ``async with Corral() as corral``.

    ``url`` defaults to CORRAL_URL, else ``http://127.0.0.1:7070``; ``token`` to CORRAL_TOKEN. The certificate of an
    ``https://`` scheduler comes from a CA that this machine trusts, unless ``ca_file`` (CORRAL_CA_FILE) names another,
    or ``fingerprint`` (CORRAL_FINGERPRINT) is its SHA-256.

    Attributes:
        tasks: submit, look, wait, cancel, run again.
        actions: build, execute, look, compare.
        logs: read and follow.
        functions: deploy, call, switch, scale.
        artifacts: list, read, fetch into a directory.
        uploads: files and directories as inputs of tasks.
        blobs: the caller's part of the blob store.
        workers: the fleet.
        records: audit rows, security events, version.
    """

    def __init__(
        self, url: str = "", token: str = "", *, ca_file: str = "", fingerprint: str = "", timeout_s: float = 30.0
    ) -> None:
        self._connection = Connection(url, token, ca_file=ca_file, fingerprint=fingerprint, timeout_s=timeout_s)
        self.blobs = RestBlobs(self._connection)
        self.tasks = Tasks(self._connection)
        self.logs = Logs(self._connection)
        self.functions = Functions(self._connection)
        self.actions = Actions(self._connection, self.blobs)
        self.artifacts = Artifacts(self._connection, self.blobs)
        self.uploads = Uploads(self.blobs)
        self.workers = Workers(self._connection)
        self.records = Records(self._connection)

    @property
    def url(self) -> str:
        """The scheduler's address."""
        return self._connection.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.__aexit__()
