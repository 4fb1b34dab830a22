"""Pure maps between the fleet's nouns and their messages."""

from collections.abc import Iterable

from corral.fleet.model import Capacity, DesiredState, Registration, RunRef, WorkerState
from corral.wire.v1 import fleet_pb2


def ref_to_message(ref: RunRef) -> fleet_pb2.RunRef:
    """A run's reference, as a message."""
    return fleet_pb2.RunRef(task_id=ref.task_id, run=ref.run, token=ref.token)


def ref_from_message(message: fleet_pb2.RunRef) -> RunRef:
    """The reference that a message holds."""
    return RunRef(task_id=message.task_id, run=message.run, token=message.token)


def refs_from_messages(messages: Iterable[fleet_pb2.RunRef]) -> tuple[RunRef, ...]:
    """The references, in order."""
    return tuple(ref_from_message(message) for message in messages)


def registration_to_message(registration: Registration) -> fleet_pb2.RegisterRequest:
    """What a worker offers, as a message."""
    capacity = registration.capacity
    return fleet_pb2.RegisterRequest(
        worker_id=registration.worker_id,
        instance=registration.instance,
        address=registration.address,
        capacity=fleet_pb2.Capacity(
            slots=capacity.slots,
            cpus=capacity.cpus,
            memory_bytes=capacity.memory_bytes,
            disk_bytes=capacity.disk_bytes,
        ),
        runtimes=registration.runtimes,
        images=registration.images,
        certificate_fingerprint=registration.certificate_fingerprint,
        version=registration.version,
        labels=registration.labels,
        result_key=registration.result_key,
    )


def registration_from_message(message: fleet_pb2.RegisterRequest) -> Registration:
    """What a worker offers."""
    return Registration(
        worker_id=message.worker_id,
        instance=message.instance,
        address=message.address,
        capacity=Capacity(
            slots=message.capacity.slots,
            cpus=message.capacity.cpus,
            memory_bytes=message.capacity.memory_bytes,
            disk_bytes=message.capacity.disk_bytes,
        ),
        runtimes=tuple(message.runtimes),
        images=tuple(message.images),
        certificate_fingerprint=message.certificate_fingerprint,
        version=message.version,
        labels=dict(message.labels),
        result_key=message.result_key,
    )


def state_to_message(state: WorkerState) -> fleet_pb2.WorkerState:
    """What is, as a message."""
    return fleet_pb2.WorkerState(
        slots_free=state.slots_free,
        runs=[ref_to_message(ref) for ref in state.runs],
        images=state.images,
        draining=state.draining,
        load=state.load,
        disk_free_bytes=state.disk_free_bytes,
        memory_free_bytes=state.memory_free_bytes,
        pools_json=state.pools_json,
        executions=state.executions,
    )


def state_from_message(message: fleet_pb2.WorkerState) -> WorkerState:
    """What is."""
    return WorkerState(
        slots_free=message.slots_free,
        runs=refs_from_messages(message.runs),
        images=tuple(message.images),
        draining=message.draining,
        load=message.load,
        disk_free_bytes=message.disk_free_bytes,
        memory_free_bytes=message.memory_free_bytes,
        pools_json=message.pools_json,
        executions=message.executions,
    )


def desired_to_message(desired: DesiredState) -> fleet_pb2.DesiredState:
    """What should be, as a message."""
    return fleet_pb2.DesiredState(
        drain=desired.drain,
        cancel=[ref_to_message(ref) for ref in desired.cancel],
        heartbeat_s=desired.heartbeat_s,
        route_key=desired.route_key,
    )


def desired_from_message(message: fleet_pb2.DesiredState) -> DesiredState:
    """What should be."""
    return DesiredState(
        drain=message.drain,
        cancel=refs_from_messages(message.cancel),
        heartbeat_s=message.heartbeat_s,
        route_key=message.route_key,
    )
