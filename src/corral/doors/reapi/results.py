"""ActionCache: results by the digest of their action, whose own blob need not be stored."""

from corral.actions.adapters.messages import digest_from
from corral.actions.model import StoredResult
from corral.actions.ports import ActionCache
from corral.doors.reapi.entrance import READ_RESULTS, WRITE_RESULTS, Entrance
from corral.doors.reapi.inline import Inliner, Wanted
from corral.doors.reapi.names import function_of
from corral.doors.reapi.services import Services
from corral.kernel.errors import NotFound
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.server import Context


class ActionCacheServicer:
    """A hit implies that every blob it names is there and stays for a while."""

    def __init__(self, entrance: Entrance, services: Services, inliner: Inliner) -> None:
        self._entrance = entrance
        self._cache: ActionCache = services.cache
        self._clock = services.clock
        self._update_enabled = services.config.cache_update
        self._inliner = inliner

    async def GetActionResult(self, request: reapi.GetActionResultRequest, context: Context) -> bytes:
        """The encoded result as it was stored; it is decoded only where content has to be put into it."""
        tenant = self._entrance.tenant(context, request.instance_name, READ_RESULTS)
        action = digest_from(request.action_digest, function_of(request.digest_function), "action_digest")
        found = await self._cache.get(tenant, action)
        if found is None:
            raise NotFound(f"no result of action {action.hash}/{action.size_bytes}", digest=str(action))
        if (wanted := Wanted.of(request)) is None:
            return found.encoded
        return await self._inliner.fill(tenant, found.encoded, wanted, action.function)

    async def UpdateActionResult(self, request: reapi.UpdateActionResultRequest, context: Context) -> bytes:
        caller = self._entrance.caller(context)
        tenant = self._entrance.admit(caller, context, request.instance_name, WRITE_RESULTS)
        if not self._update_enabled:
            self._entrance.refuse(caller, "only workers fill this action cache (reapi.cache_update is off)", context)
        action = digest_from(request.action_digest, function_of(request.digest_function), "action_digest")
        encoded = request.action_result.SerializeToString()
        await self._cache.update(tenant, action, StoredResult(encoded=encoded, stored_s=self._clock.now_s()))
        return encoded
