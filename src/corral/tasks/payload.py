"""The payload of a task: the union of the core's fields and every plugin's, composed once.

The scheduler checks a payload when it is submitted, the worker when it runs it, with the same code: pure, and listing
all mistakes at once. Two sections that claim one key are a mistake of ours, found when the process starts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from corral.tasks.core_fields import ArtifactReference, CoreFields
from corral.tasks.payload_decode import Mistakes, any_required, decode_section, field_names, unknown_key
from corral.tasks.plugin import Plugin
from corral.tasks.plugins.built_in import BUILT_IN

CORE: Final = "core"
_AT: Final = "payload"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A payload as its sections see it: a section is None when its part is malformed; ``mistakes`` says why."""

    sections: Mapping[str, Any]
    mistakes: tuple[str, ...]

    @property
    def core(self) -> CoreFields | None:
        """The core's section."""
        core: CoreFields | None = self.sections[CORE]
        return core


class PayloadSchema:
    """The composition of sections, each a frozen Struct named by its owner."""

    def __init__(self, sections: Mapping[str, type[msgspec.Struct]]) -> None:
        """Raises ValueError when two sections claim one key."""
        self._sections = dict(sections)
        self._owners: dict[str, str] = {}
        for owner, section in self._sections.items():
            for key in field_names(section):
                if key in self._owners:
                    raise ValueError(f'the payload key "{key}" is claimed by both {self._owners[key]} and {owner}')
                self._owners[key] = owner
        # most payloads name few keys: a section that none of them belongs to is this one, made once
        self._untouched = {owner: section() for owner, section in self._sections.items() if not any_required(section)}

    @classmethod
    def of(cls, plugins: Iterable[type[Plugin] | Plugin]) -> "PayloadSchema":
        """The core's section and those of ``plugins``. Raises ValueError on a conflict of keys or names."""
        sections: dict[str, type[msgspec.Struct]] = {CORE: CoreFields}
        for plugin in plugins:
            if plugin.name in sections:
                raise ValueError(f'two plugins are named "{plugin.name}"')
            sections[plugin.name] = plugin.fields
        return cls(sections)

    def decode(self, payload: Mapping[str, Any]) -> Decoded:
        """Every section's part; never raises for what a user wrote."""
        mistakes = Mistakes()
        for key in payload:
            if key not in self._owners:
                mistakes.add(unknown_key(_AT, str(key), self._owners))
        values = dict(payload)
        touched = {self._owners[key] for key in payload if key in self._owners}
        sections = {
            owner: self._untouched[owner]
            if owner not in touched and owner in self._untouched
            else decode_section(section, values, _AT, mistakes)
            for owner, section in self._sections.items()
        }
        return Decoded(sections, tuple(mistakes.found))

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the whole payload."""
        roots, components = msgspec.json.schema_components(list(self._sections.values()), ref_template="#/$defs/{name}")
        named = {root["$ref"].rpartition("/")[2] for root in roots}
        parts = [components[name] for name in (root["$ref"].rpartition("/")[2] for root in roots)]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Task payload",
            "type": "object",
            "properties": {key: value for part in parts for key, value in part["properties"].items()},
            "required": sorted(key for part in parts for key in part.get("required", ())),
            "additionalProperties": False,
            "$defs": {name: part for name, part in sorted(components.items()) if name not in named},
        }

    def owners(self) -> Mapping[str, Sequence[str]]:
        """Each section's keys, in order."""
        return {owner: field_names(section) for owner, section in self._sections.items()}


SCHEMA: Final = PayloadSchema.of(BUILT_IN)
"""What this version's plugins understand, whichever of them a worker has switched on."""


def validate_payload(payload: Mapping[str, Any]) -> list[str]:
    """All mistakes of a payload, as sentences that begin with the place; empty when it is right."""
    return list(SCHEMA.decode(payload).mistakes)


def secret_names(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """The tenant's secrets that a payload names; a claim carries the values of exactly these."""
    named = payload.get("secrets")
    names = [*(named.values() if isinstance(named, Mapping) else ()), payload.get("image_secret")]
    return tuple(sorted({name for name in names if isinstance(name, str) and name}))


def artifact_references(payload: Mapping[str, Any]) -> tuple[ArtifactReference, ...]:
    """The earlier artifacts that a payload takes as inputs; a claim carries what each ``key`` stands for."""
    inputs = payload.get("inputs")
    if not isinstance(inputs, list | tuple) or not any(
        isinstance(each, Mapping) and "artifact" in each for each in inputs
    ):
        return ()
    core = SCHEMA.decode(payload).core
    if core is None:
        return ()
    return tuple({each.artifact.key: each.artifact for each in core.inputs if each.artifact is not None}.values())
