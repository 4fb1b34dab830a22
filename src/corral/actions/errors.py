"""What only actions can get wrong; under the same tree as all errors (``kernel.errors``)."""

from collections.abc import Collection

from corral.kernel.digest import Digest
from corral.kernel.errors import CallerError

_NAMED_MAX = 3


class MissingBlobs(CallerError):
    """Content that an action or a result names is not in the tenant's store; ``digests`` are all that is known of it.

    A door answers with what its protocol has for it (FAILED_PRECONDITION with one violation per blob), so that the
    client uploads them and tries again.
    """

    code = "missing-blobs"
    status = 412

    def __init__(self, digests: Collection[Digest], what: str = "the action needs") -> None:
        self.digests = tuple(sorted(digests, key=str))
        named = ", ".join(str(digest) for digest in self.digests[:_NAMED_MAX])
        more = f" and {len(self.digests) - _NAMED_MAX} more" if len(self.digests) > _NAMED_MAX else ""
        super().__init__(
            f"{what} blobs that are not stored: {named}{more}",
            cure="Upload them and try again.",
            missing=len(self.digests),
        )
