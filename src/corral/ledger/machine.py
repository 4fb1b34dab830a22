"""Pure decisions of the ledger: what an event may look like once strangers had a hand in it.

Names, tokens and paths in a security event come from whoever was refused. No text of theirs may stop the ledger: what
a database or JSON cannot hold is replaced, and what is too long is cut.
"""

from typing import Final

import msgspec

from corral.ledger.model import Fact, SecurityEvent

TEXT_MAX: Final = 2000
FACTS_MAX: Final = 50
_INTEGER_MAX: Final = 2**53  # what every reader of JSON understands


def cleaned(event: SecurityEvent) -> SecurityEvent:
    """The event with every text made storable and bounded."""
    facts = {clean_text(name): _clean_fact(value) for name, value in list(event.facts.items())[:FACTS_MAX]}
    return msgspec.structs.replace(
        event,
        component=clean_text(event.component),
        kind=clean_text(event.kind),
        reason=clean_text(event.reason),
        tenant=clean_text(event.tenant),
        actor=clean_text(event.actor),
        request_id=clean_text(event.request_id),
        facts=facts,
    )


def clean_text(text: str) -> str:
    """Without NUL and lone surrogates, at most ``TEXT_MAX`` characters."""
    short = text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"
    return short.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _clean_fact(value: Fact) -> Fact:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and abs(value) > _INTEGER_MAX:
        return clean_text(str(value)) if value.bit_length() <= 4096 else "a number of more than 4096 bits"
    return value
