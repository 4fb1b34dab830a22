"""Messages to a stream whose call may have ended in this very moment."""

import asyncio
from typing import Any


async def sent(call: Any, message: Any) -> bool:
    """Write ``message`` to ``call``, a ``StreamStreamCall``; False when the call has ended: who reads it is told how.

    gRPC raises asyncio.InvalidStateError there ("RPC already finished"), which nobody takes for a lost connection.
    """
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        return False
    return True
