"""The worker's end of the fleet's protocol: one channel, one session, kept alive whatever the scheduler does.

``SchedulerLink.run()`` connects, authenticates, registers and attends, and does so again after every loss, for as long
as it runs; work that is under way goes on meanwhile. Whoever calls other services of the scheduler asks the link for
``wait_session()``: a stub's channel and the metadata of a session that is valid as far as we know.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import grpc
import msgspec
import structlog

from corral.fleet.adapters.messages import desired_from_message, registration_to_message, state_to_message
from corral.fleet.model import DesiredState, Registration, WorkerState
from corral.kernel.concurrency import Signal, raise_if_cancelled
from corral.kernel.errors import Conflict, CorralError, SchedulerUnavailable, Unauthenticated
from corral.wire.errors import error_of_rpc
from corral.wire.sessions import session_metadata
from corral.wire.streams import sent
from corral.wire.transport import ClientTls, WireLimits, open_channel
from corral.wire.v1 import fleet_pb2
from corral.wire.v1.fleet_pb2_grpc import FleetStub

_STATE_GAP_S: Final = 0.5  # at most two states a second, however often something changes
_logger = structlog.get_logger("corral.fleet.link")


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker keeps in touch.

    Attributes:
        connect_s: how long one attempt to connect and register may take.
        retry_min_s, retry_max_s: pauses between attempts; they double, with jitter, from the one to the other.
        silent_beats: so many heartbeats without an answer mean that the scheduler is gone.
    """

    connect_s: float = 10.0
    retry_min_s: float = 0.1
    retry_max_s: float = 5.0
    silent_beats: float = 3.0
    tls: ClientTls = ClientTls()
    limits: WireLimits = WireLimits()


@dataclass(frozen=True, slots=True)
class LinkSession:
    """A session that the scheduler knows, as far as we know. ``number`` grows with every session."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]
    number: int
    lease_s: float


class SchedulerLink:
    """See the module.

    ``state`` is asked for what is, at every heartbeat; ``on_desired`` hears what should be, each time the scheduler
    says so; both are called on the event loop and must not block.
    """

    def __init__(
        self,
        address: str,
        worker_token: str,
        registration: Registration,
        *,
        state: Callable[[], WorkerState],
        on_desired: Callable[[DesiredState], None],
        config: LinkConfig | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._address = address
        self._worker_token = worker_token
        self._registration = registration
        self._state = state
        self._on_desired = on_desired
        self._config = config or LinkConfig()
        self._jitter = jitter
        self._session: LinkSession | None = None
        self._connected = Signal()
        self._dropped = asyncio.Event()
        self._changed = asyncio.Event()
        self._sessions = 0
        self._trouble = ""

    @property
    def registration(self) -> Registration:
        """What we offer; from the next session on."""
        return self._registration

    @registration.setter
    def registration(self, value: Registration) -> None:
        self._registration = value

    @property
    def connected(self) -> bool:
        """True while the scheduler knows us and answers."""
        return self._session is not None

    @property
    def trouble(self) -> str:
        """Why we are not connected, in one sentence; "" when we are."""
        return self._trouble

    def state_changed(self) -> None:
        """Tell the scheduler soon what is, instead of at the next heartbeat."""
        self._changed.set()

    def session_refused(self, session: LinkSession) -> None:
        """A call with this session was answered "who are you?": get another one."""
        if self._session is session:
            self._session = None
            self._dropped.set()

    async def wait_session(self) -> LinkSession:
        """The current session, as soon as there is one. Waits for as long as it takes. Cancellation: safe."""
        while (session := self._session) is None:
            await self._connected.wait_notified(within_s=3600)
        return session

    async def run(self) -> NoReturn:
        """Stay connected until cancelled. Only a mistake in the configuration ends it otherwise.

        Raises: InvalidSpec when TLS is configured wrongly or not at all.
        """
        pause_s = self._config.retry_min_s
        channel: grpc.aio.Channel | None = None
        try:
            while True:
                before = self._sessions
                try:
                    channel = channel or await open_channel(self._address, self._config.tls, self._config.limits)
                    await self._attend_once(channel)
                except CorralError as error:
                    raise_if_cancelled()
                    if not error.retryable and not isinstance(error, (Conflict, Unauthenticated)):
                        raise
                    self._note_trouble(error)
                finally:
                    self._session = None
                if self._sessions > before:
                    pause_s = self._config.retry_min_s  # it worked for a while
                await asyncio.sleep(pause_s * (0.5 + self._jitter()))
                pause_s = min(pause_s * 2, self._config.retry_max_s)
        finally:
            self._session = None
            if channel is not None:
                await channel.close(None)

    async def _attend_once(self, channel: grpc.aio.Channel) -> None:
        """One session, from authentication to its loss, which raises."""
        stub = FleetStub(channel)
        registration = self._registration
        try:
            async with asyncio.timeout(self._config.connect_s):
                answer = await stub.Authenticate(
                    fleet_pb2.AuthenticateRequest(
                        worker_token=self._worker_token,
                        worker_id=registration.worker_id,
                        instance=registration.instance,
                        version=registration.version,
                    ),
                    wait_for_ready=True,
                )
                metadata = session_metadata(answer.session_token)
                terms = await stub.Register(registration_to_message(registration), metadata=metadata)
            call = stub.Attend(metadata=metadata)  # type: ignore[call-arg]  # without an iterator: we write
            session = LinkSession(channel, metadata, self._sessions + 1, terms.lease_s)
            try:
                await self._converse(call, session, terms.heartbeat_s)
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            raise error_of_rpc(error) from error
        except TimeoutError as error:
            raise SchedulerUnavailable(
                f"no scheduler answers at {self._address}", cure="start one with `corral up`"
            ) from error

    async def _converse(
        self,
        call: "grpc.aio.StreamStreamCall[fleet_pb2.WorkerState, fleet_pb2.DesiredState]",
        session: LinkSession,
        heartbeat_s: float,
    ) -> None:
        self._dropped.clear()
        beat = [heartbeat_s]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell(call, beat), name="link:tell")
                group.create_task(self._until_dropped(), name="link:dropped")
                await self._hear(call, session, beat)
        except BaseExceptionGroup as errors:
            raise_if_cancelled()
            raise _first(errors) from None

    async def _tell(
        self, call: "grpc.aio.StreamStreamCall[fleet_pb2.WorkerState, fleet_pb2.DesiredState]", beat: list[float]
    ) -> None:
        """Tell the state until cancelled or until the call has ended: whoever hears is told how."""
        while True:
            self._changed.clear()
            if not await sent(call, state_to_message(self._state())):
                return
            await asyncio.sleep(_STATE_GAP_S)
            try:
                async with asyncio.timeout(beat[0]):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _hear(
        self,
        call: "grpc.aio.StreamStreamCall[fleet_pb2.WorkerState, fleet_pb2.DesiredState]",
        session: LinkSession,
        beat: list[float],
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(beat[0] * self._config.silent_beats):
                    message = await call.read()
            except TimeoutError:
                raise SchedulerUnavailable(f"the scheduler at {self._address} fell silent") from None
            if not isinstance(message, fleet_pb2.DesiredState):  # the end of the stream
                raise SchedulerUnavailable(f"the scheduler at {self._address} ended the stream")
            desired = desired_from_message(message)
            beat[0] = desired.heartbeat_s
            if self._session is not session and not self._dropped.is_set():
                self._established(session)
            self._on_desired(desired)

    async def _until_dropped(self) -> None:
        await self._dropped.wait()
        raise SchedulerUnavailable("the scheduler does not know the session any more")

    def _established(self, session: LinkSession) -> None:
        self._session = session
        self._sessions = session.number
        self._trouble = ""
        self._connected.notify()
        _logger.info("scheduler-connected", address=self._address, session=session.number)

    def _note_trouble(self, error: CorralError) -> None:
        if self._trouble != error.message:
            self._trouble = error.message
            _logger.warning("scheduler-not-connected", address=self._address, error=error.message, cure=error.cure)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
