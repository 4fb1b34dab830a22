"""Capabilities: what this scheduler offers, to this caller."""

from typing import Final

from corral.doors.reapi.config import ReapiConfig
from corral.doors.reapi.entrance import EXECUTE, READ_RESULTS, WRITE_RESULTS, Entrance
from corral.tenants.model import Principal
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi import remote_execution_pb2_grpc as reapi_grpc
from corral.wire.reapi.semver_pb2 import SemVer
from corral.wire.server import Context

LOWEST: Final = SemVer(major=2, minor=0)  # Bazel before 6 refuses a server that begins above it
HIGHEST: Final = SemVer(major=2, minor=3)
_FUNCTIONS: Final = (reapi.DigestFunction.SHA256, reapi.DigestFunction.BLAKE3)
_PRIORITY_MAX: Final = 1000


class CapabilitiesServicer(reapi_grpc.CapabilitiesServicer):
    """Tells limits and powers; those that the caller's scopes do not allow are told as absent."""

    def __init__(self, entrance: Entrance, config: ReapiConfig, *, blob_bytes: int) -> None:
        self._entrance = entrance
        self._config = config
        self._blob_bytes = blob_bytes

    async def GetCapabilities(
        self, request: reapi.GetCapabilitiesRequest, context: Context
    ) -> reapi.ServerCapabilities:
        caller = self._entrance.caller(context)
        self._entrance.admit(caller, context, request.instance_name, READ_RESULTS)
        return reapi.ServerCapabilities(
            cache_capabilities=self._cache(caller),
            execution_capabilities=reapi.ExecutionCapabilities(
                digest_function=reapi.DigestFunction.SHA256,
                digest_functions=_FUNCTIONS,
                exec_enabled=caller.may(EXECUTE),
                execution_priority_capabilities=_priorities(-_PRIORITY_MAX, _PRIORITY_MAX),
            ),
            low_api_version=LOWEST,
            high_api_version=HIGHEST,
        )

    def _cache(self, caller: Principal) -> reapi.CacheCapabilities:
        return reapi.CacheCapabilities(
            digest_functions=_FUNCTIONS,
            action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(
                update_enabled=self._config.cache_update and caller.may(WRITE_RESULTS)
            ),
            cache_priority_capabilities=_priorities(0, 0),
            max_batch_total_size_bytes=self._config.batch_bytes,
            max_cas_blob_size_bytes=self._blob_bytes,
            symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategy.ALLOWED,
            supported_compressors=[reapi.Compressor.ZSTD],
            supported_batch_update_compressors=[reapi.Compressor.ZSTD],
            split_blob_support=True,
            splice_blob_support=True,
            fast_cdc_2020_params=reapi.FastCdc2020Params(avg_chunk_size_bytes=self._config.chunk_bytes),
        )


def _priorities(lowest: int, highest: int) -> reapi.PriorityCapabilities:
    return reapi.PriorityCapabilities(
        priorities=[reapi.PriorityCapabilities.PriorityRange(min_priority=lowest, max_priority=highest)]
    )
