"""Programs from elsewhere: by URL, or as an artifact of an OCI registry (``oci://registry/name[:tag][@sha256:…]``).

Only from where the operator allows (``functions.module_urls``): a scheduler must not be sent around its own network. An
artifact is a manifest with one layer of WebAssembly, as ``oras`` and ``wkg`` push them.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import IO, Final

from corral.blobs.content import file_pieces, write_stream
from corral.blobs.ports import BlobStore
from corral.functions.config import FunctionsConfig
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec, Refused, StoreUnavailable, TooLarge
from corral.kernel.units import format_size

OCI: Final = "oci://"
_FETCH_S: Final = 30.0
_TRIES: Final = 3
_PIECE: Final = 256 * 1024
_MANIFEST_BYTES: Final = 1024**2


class Programs:
    """Brings programs into the store; ``spool`` is a directory for bytes on their way."""

    def __init__(self, blobs: BlobStore, config: FunctionsConfig, spool: Path) -> None:
        self._blobs = blobs
        self._config = config
        self._spool = spool

    async def fetch(self, tenant: str, url: str, expected: Digest | None = None) -> Digest:
        """Fetch it, unless ``expected`` is stored already. What comes must be ``expected``.

        Raises: Refused for a URL that is not allowed; InvalidSpec for another content, or what is no artifact;
        TooLarge; NotFound, Unauthenticated, StoreUnavailable from where it should come.
        """
        if expected is not None and not await self._blobs.find_missing(tenant, [expected]):
            return expected
        if not any(url.startswith(prefix) for prefix in self._config.module_urls):
            raise Refused(
                "programs are not fetched from this URL", cure="the operator allows it in functions.module_urls"
            )
        if expected is not None:
            self._check_size(expected.size_bytes)
        if url.startswith(OCI):
            return await self._artifact(tenant, url.removeprefix(OCI), expected)
        limit = self._config.module_bytes if expected is None else expected.size_bytes
        async with aclosing(_download(url, limit)) as pieces:
            if expected is None:
                return await write_stream(self._blobs, tenant, pieces, spool_dir=self._spool, bytes_max=limit)
            await self._blobs.write(tenant, expected, pieces)
            return expected

    async def _artifact(self, tenant: str, reference: str, expected: Digest | None) -> Digest:
        with tempfile.TemporaryFile(dir=self._spool) as file:
            digest = await asyncio.to_thread(self._pull, reference, file)
            if expected is not None and expected.function is HashFunction.SHA256 and expected != digest:
                raise InvalidSpec(f"the artifact {reference[:100]} holds the program {digest}, not {expected}")
            file.seek(0)
            await self._blobs.write(tenant, expected or digest, file_pieces(file))
        return expected or digest

    def _pull(self, reference: str, file: IO[bytes]) -> Digest:
        """Blocking. The program's digest; the store verifies it."""
        from corral.images.adapters.sources import open_source  # noqa: PLC0415 (most schedulers never pull)
        from corral.images.machine import read_document  # noqa: PLC0415
        from corral.images.model import ImageLimits, Layer, Reference, RegistryPlace, is_loopback  # noqa: PLC0415

        named = Reference.parse(reference)
        if not named.registry:
            raise InvalidSpec(f'"{reference[:100]}" names no registry; write oci://registry/name:tag', field="url")
        place = RegistryPlace(
            registry=named.registry, repository=named.repository, insecure=is_loopback(named.registry)
        )
        limits = ImageLimits(stall_s=_FETCH_S, tries=_TRIES)
        with open_source(place, subject=str(named), limits=limits) as source:
            data, kind = source.document(named.wanted, bytes_max=_MANIFEST_BYTES)
            layers = read_document(data, subject=str(named), media_type=kind).layers or ()
            wasm = [each for each in layers if "wasm" in each.media_type] or list(layers)
            if len(wasm) != 1:
                raise InvalidSpec(f"{named}: is no artifact with one program; it has {len(layers)} layers", field="url")
            self._check_size(wasm[0].size)
            for piece in source.layer(Layer(digest=wasm[0].digest, size_bytes=wasm[0].size, diff_id="")):
                file.write(piece)
        return Digest.parse(f"{wasm[0].digest}-{wasm[0].size}")

    def _check_size(self, size_bytes: int) -> None:
        limit = self._config.module_bytes
        if size_bytes > limit:
            raise TooLarge(
                f"the program has {format_size(size_bytes)}; the limit functions.module_bytes is {format_size(limit)}"
            )


async def _download(url: str, size_bytes: int) -> AsyncGenerator[bytes, None]:
    """The bytes behind a URL, one more than expected at most. Redirects are not followed."""
    import urllib.request  # noqa: PLC0415 (two megabytes that most schedulers never need)

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        """An allowed prefix must not lead elsewhere."""

        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(NoRedirects(), urllib.request.ProxyHandler({}))
    try:
        answer = await asyncio.to_thread(opener.open, url, None, _FETCH_S)
    except (OSError, ValueError) as error:
        raise StoreUnavailable(f"the program cannot be fetched: {error}") from error
    try:
        read = 0
        while read <= size_bytes:
            piece: bytes = await asyncio.to_thread(answer.read, min(_PIECE, size_bytes + 1 - read))
            if not piece:
                return
            read += len(piece)
            yield piece
    except OSError as error:
        raise StoreUnavailable(f"the program cannot be fetched: {error}") from error
    finally:
        answer.close()
