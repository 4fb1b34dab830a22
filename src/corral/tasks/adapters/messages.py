"""Pure maps between claims, reports and their messages. Definitions and reports travel as their JSON."""

from typing import Final

import msgspec

from corral.fleet.adapters.messages import ref_from_message, ref_to_message
from corral.kernel.errors import InvalidSpec
from corral.tasks.model import Artifact, RunReport, TaskDefinition
from corral.tasks.ports import Claim, RunRef
from corral.wire.v1 import fleet_pb2

_encode: Final = msgspec.json.Encoder().encode
_decode_definition: Final = msgspec.json.Decoder(TaskDefinition).decode
_decode_artifact: Final = msgspec.json.Decoder(Artifact).decode
_decode_report: Final[msgspec.json.Decoder[RunReport]] = msgspec.json.Decoder(RunReport)


def claim_to_message(claim: Claim) -> fleet_pb2.Claim:
    """A claim, as a message."""
    return fleet_pb2.Claim(
        ref=ref_to_message(claim.ref),
        tenant=claim.tenant,
        definition_json=_encode(claim.definition),
        lease_until_s=claim.lease_until_s,
        deadline_s=claim.deadline_s,
        secrets=dict(claim.secrets),
        artifacts_json={key: _encode(artifact) for key, artifact in claim.artifacts.items()},
    )


def claim_from_message(message: fleet_pb2.Claim) -> Claim:
    """The claim that a message holds. Raises msgspec.MsgspecError for a definition or artifact that we do not know."""
    return Claim(
        ref=ref_from_message(message.ref),
        tenant=message.tenant,
        definition=_decode_definition(message.definition_json),
        lease_until_s=message.lease_until_s,
        deadline_s=message.deadline_s,
        secrets=dict(message.secrets),
        artifacts={key: _decode_artifact(text) for key, text in message.artifacts_json.items()},
    )


def report_to_message(ref: RunRef, report: RunReport) -> fleet_pb2.RunReport:
    """A report, as a message."""
    return fleet_pb2.RunReport(ref=ref_to_message(ref), report_json=_encode(report))


def report_from_message(message: fleet_pb2.RunReport) -> tuple[RunRef, RunReport]:
    """The report that a message holds. Raises InvalidSpec when it cannot be read."""
    try:
        return ref_from_message(message.ref), _decode_report.decode(message.report_json)
    except msgspec.MsgspecError as error:
        raise InvalidSpec(f"the report of {message.ref.task_id} cannot be read: {error}") from error
