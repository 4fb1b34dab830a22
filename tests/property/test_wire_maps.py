"""What is put into a message comes out of it, for every value."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.fleet.adapters import messages as fleet_messages
from corral.fleet.model import Capacity, DesiredState, Registration, RunRef, WorkerState
from corral.tasks.adapters import messages as task_messages
from corral.tasks.model import Artifact, ArtifactKind, Phase, Priority, Reason, Resolved, RunUsage, Started
from corral.tasks.model import TaskDefinition as Definition
from corral.tasks.ports import Claim
from corral.wire.v1 import fleet_pb2

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WORDS = st.lists(TEXT, max_size=3).map(tuple)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
INT63 = st.integers(0, 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
REFS = st.builds(RunRef, task_id=TEXT, run=UINT32, token=UINT64)
MANY_REFS = st.lists(REFS, max_size=3).map(tuple)
STRINGS = st.dictionaries(TEXT, TEXT, max_size=3)
REGISTRATIONS = st.builds(
    Registration,
    worker_id=TEXT,
    instance=TEXT,
    capacity=st.builds(Capacity, slots=UINT32, cpus=REAL, memory_bytes=UINT64, disk_bytes=UINT64),
    address=TEXT,
    runtimes=WORDS,
    images=WORDS,
    certificate_fingerprint=TEXT,
    version=TEXT,
    labels=STRINGS,
)
STATES = st.builds(
    WorkerState,
    slots_free=UINT32,
    runs=MANY_REFS,
    images=WORDS,
    draining=st.booleans(),
    load=REAL,
    disk_free_bytes=UINT64,
    memory_free_bytes=UINT64,
    pools_json=TEXT,
)
DESIRED = st.builds(DesiredState, heartbeat_s=REAL, drain=st.booleans(), cancel=MANY_REFS)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
CLAIMS = st.builds(
    Claim,
    ref=REFS,
    tenant=TEXT,
    definition=st.builds(
        Definition,
        payload=st.dictionaries(TEXT, JSON, max_size=3),
        name=TEXT,
        dependencies=WORDS,
        priority=st.sampled_from(Priority),
        deadline_s=REAL,
        retries=st.integers(0, 100),
        metadata=STRINGS,
    ),
    lease_until_s=REAL,
    deadline_s=REAL,
    secrets=STRINGS,
)
REPORTS = st.builds(Started, at_s=REAL) | st.builds(
    Resolved,
    at_s=REAL,
    phase=st.sampled_from([Phase.COMPLETED, Phase.FAILED, Phase.EXCEPTION]),
    reason=st.none() | st.sampled_from(Reason),
    exit_status=st.none() | st.integers(0, 255),
    message=TEXT,
    argv=WORDS,
    artifacts=st.lists(
        st.builds(Artifact, name=TEXT, kind=st.sampled_from(ArtifactKind), digest=TEXT, size_bytes=INT63), max_size=2
    ).map(tuple),
    usage=st.builds(RunUsage, wall_s=REAL, memory_peak_bytes=INT63, warm=st.booleans()),
)
once = settings(derandomize=True, deadline=None, max_examples=100)


@once
@given(REGISTRATIONS)
def test_a_registration_survives(value: Registration) -> None:
    sent = fleet_messages.registration_to_message(value).SerializeToString()

    assert fleet_messages.registration_from_message(fleet_pb2.RegisterRequest.FromString(sent)) == value


@once
@given(STATES)
def test_a_worker_s_state_survives(value: WorkerState) -> None:
    sent = fleet_messages.state_to_message(value).SerializeToString()

    assert fleet_messages.state_from_message(fleet_pb2.WorkerState.FromString(sent)) == value


@once
@given(DESIRED)
def test_desired_state_survives(value: DesiredState) -> None:
    sent = fleet_messages.desired_to_message(value).SerializeToString()

    assert fleet_messages.desired_from_message(fleet_pb2.DesiredState.FromString(sent)) == value


@once
@given(CLAIMS)
def test_a_claim_survives(value: Claim) -> None:
    sent = task_messages.claim_to_message(value).SerializeToString()

    assert task_messages.claim_from_message(fleet_pb2.Claim.FromString(sent)) == value


@once
@given(REFS, REPORTS)
def test_a_report_survives(ref: RunRef, report: Started | Resolved) -> None:
    sent = task_messages.report_to_message(ref, report).SerializeToString()

    assert task_messages.report_from_message(fleet_pb2.RunReport.FromString(sent)) == (ref, report)
