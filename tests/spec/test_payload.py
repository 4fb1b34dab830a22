"""What a payload may be, and that a user hears every mistake at once, each with its place."""

import os
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from corral.tasks.payload import SCHEMA, PayloadSchema, artifact_references, secret_names, validate_payload
from corral.tasks.plugin import Plugin

DIGEST = "b3:" + "0" * 64 + "-5"
TASK = "task_" + "0" * 26
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "payload.md"


def mistakes(**fields: Any) -> list[str]:
    return validate_payload({"command": ["true"], **fields})


def test_the_smallest_payload_is_a_command() -> None:
    assert validate_payload({"command": ["true"]}) == []


def test_a_payload_with_every_key_is_right() -> None:
    assert (
        mistakes(
            image="root:/srv/roots/debian",
            inputs=[
                {"path": ".", "tree": DIGEST},
                {"path": "a/b", "digest": DIGEST, "executable": True},
                {"path": "c", "artifact": {"task": TASK, "name": "out.txt", "run": 0}},
            ],
            resources={"memory": "1GiB", "cpus": 1.5, "processes": 10, "files": 10, "disk": 1000},
            network=True,
            cwd="src/deep",
            env={"A": "b"},
            secrets={"TOKEN": "deploy"},
            artifacts=[{"path": "out", "type": "directory"}, {"path": "**/*.o", "type": "glob", "optional": True}],
            caches=[{"name": "ccache", "path": ".ccache"}, {"tree": DIGEST, "path": "sdk"}],
            max_run_time="1h30m",
            success_statuses=[0, 3],
            retry_statuses=[75],
        )
        == []
    )


def test_all_mistakes_of_all_plugins_are_listed_at_once() -> None:
    found = validate_payload(
        {
            "comand": ["x"],
            "inputs": [{"path": "/etc"}, 3],
            "env": {"1A": "x"},
            "max_run_time": -1,
            "artifacts": [{"path": "../x", "typ": "file"}],
        }
    )

    assert len(found) == 9
    for part in (
        'payload.comand: there is no such key; did you mean "command"?',
        "payload.command: is required",
        "payload.inputs[0].path:",
        "payload.inputs[0].digest: exactly one",
        "payload.inputs[1]: expected an object, got a number",
        "payload.env.1A: is no name of a variable",
        'payload.artifacts[0].typ: there is no such key; did you mean "type"?',
        "payload.artifacts[0].path:",
        'payload.max_run_time: "-1.0"',
    ):
        assert any(mistake.startswith(part) for mistake in found), part


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("command", "make all", "payload.command: expected a list, got a string"),
        ("command", [], "payload.command: is empty"),
        ("command", ["a", 3], "payload.command[1]: expected a string, got a whole number"),
        ("command", ["a\0b"], "payload.command[0]: holds a NUL byte"),
        ("command", ["x" * 200_000], "payload.command[0]: is 200000 bytes long"),
        ("command", ["x" * 100_000] * 20, "payload.command: is 2000020 bytes long"),
        ("image", "Debian:12", 'payload.image: "Debian:12" has no right name'),
        ("image", "name@sha256:abc", 'payload.image: "name@sha256:abc" has no digest'),
        ("image_secret", "hub", "payload.image_secret:"),
        ("image", "root:relative", "payload.image:"),
        ("image", "root:/a/../etc", "payload.image:"),
        ("network", "yes", "payload.network: expected a boolean, got a string"),
        ("cwd", "../up", "payload.cwd:"),
        ("cwd", "/a/../..", "payload.cwd:"),
        ("resources", {"memory": "-1GB"}, "payload.resources.memory:"),
        ("resources", {"memory": "9999999PB"}, "payload.resources.memory:"),
        ("resources", {"memory": "100000TB"}, "payload.resources.memory:"),
        ("resources", {"cpus": 0}, "payload.resources.cpus:"),
        ("resources", {"processes": -4}, "payload.resources.processes:"),
        ("resources", {"files": 10**30}, "payload.resources.files:"),
        ("inputs", [{"path": "a", "digest": "x"}], "payload.inputs[0].digest:"),
        ("inputs", [{"path": "a/./b", "digest": DIGEST}], "payload.inputs[0].path:"),
        ("inputs", [{"path": ".", "digest": DIGEST}], "payload.inputs[0].path:"),
        ("inputs", [{"path": "a", "digest": DIGEST, "tree": DIGEST}], "payload.inputs[0].digest: exactly one"),
        ("inputs", [{"path": "a", "artifact": {"task": "x", "name": "n"}}], "payload.inputs[0].artifact.task:"),
        ("inputs", [{"path": "a", "digest": DIGEST}] * 2, "payload.inputs[1].path:"),
        (
            "inputs",
            [{"path": "a", "digest": DIGEST}, {"path": "a/b/c", "digest": DIGEST}],
            "payload.inputs[1].path:",
        ),
        ("env", {"A": "x\0"}, "payload.env.A: the value holds a NUL byte"),
        ("env", {"A=B": "x"}, "payload.env.A=B:"),
        ("env", [], "payload.env: expected an object"),
        ("artifacts", [{"path": "/abs"}], "payload.artifacts[0].path:"),
        ("artifacts", [{"path": "a", "name": "../b"}], "payload.artifacts[0].name:"),
        ("artifacts", [{"path": "a", "type": "zip"}], "payload.artifacts[0].type:"),
        ("artifacts", [{"path": "a"}, {"path": "a"}], "payload.artifacts[1].name:"),
        ("caches", [{"path": "c"}], "payload.caches[0].name: exactly one"),
        ("caches", [{"path": "c", "name": "../../x"}], "payload.caches[0].name:"),
        ("caches", [{"path": "c", "name": "a"}, {"path": "c/d", "name": "b"}], "payload.caches[1].path:"),
        ("caches", [{"path": "c", "name": "a"}, {"path": "d", "name": "a"}], "payload.caches[1].name:"),
        ("max_run_time", 0, "payload.max_run_time:"),
        ("max_run_time", "inf", "payload.max_run_time:"),
        ("success_statuses", [], "payload.success_statuses:"),
        ("retry_statuses", [0], "payload.retry_statuses:"),
        ("retry_statuses", [256], "payload.retry_statuses[0]:"),
    ],
)
def test_a_mistake_is_told_with_its_place(field: str, value: Any, place: str) -> None:
    found = validate_payload({"command": ["true"], field: value})

    assert len(found) == 1
    assert found[0].startswith(place)


def test_a_hostile_payload_gives_a_bounded_list_of_short_mistakes() -> None:
    found = mistakes(inputs=[{"x" * 1000: 1}] * 1000, **{f"k{number}" * 100: 1 for number in range(1000)})

    assert len(found) == 101
    assert all(len(mistake) < 1000 for mistake in found)


def test_control_characters_of_a_payload_do_not_reach_the_message() -> None:
    (found,) = mistakes(inputs=[{"path": "/\x1b[31m", "digest": DIGEST}])

    assert "\x1b" not in found


def test_two_plugins_that_claim_one_key_stop_the_start() -> None:
    class Fields(msgspec.Struct, frozen=True, kw_only=True):
        env: str = ""

    class Other(Plugin):
        name: ClassVar[str] = "other"
        fields: ClassVar[type[msgspec.Struct]] = Fields

    with pytest.raises(ValueError, match='"env" is claimed by both'):
        PayloadSchema({"a": Fields, "other": Other.fields})


def test_the_scheduler_learns_which_secrets_and_artifacts_a_payload_needs() -> None:
    payload = {
        "command": ["true"],
        "secrets": {"A": "one", "B": "two", "C": "one"},
        "inputs": [{"path": "c", "artifact": {"task": TASK, "name": "out.txt"}}],
    }

    assert secret_names(payload) == ("one", "two")
    assert [reference.key for reference in artifact_references(payload)] == [f"{TASK}/last/out.txt"]
    assert secret_names({"secrets": 3}) == ()
    assert artifact_references({"inputs": "x"}) == ()


def test_the_json_schema_refuses_unknown_keys_and_requires_the_command() -> None:
    schema = SCHEMA.json_schema()

    assert schema["additionalProperties"] is False
    assert schema["required"] == ["command"]
    assert {"command", "inputs", "env", "artifacts", "caches", "max_run_time"} <= set(schema["properties"])


def test_the_reference_is_written_from_the_schema() -> None:
    if os.environ.get("CORRAL_REWRITE"):
        REFERENCE.parent.mkdir(parents=True, exist_ok=True)
        REFERENCE.write_text(reference(), encoding="utf-8")

    assert REFERENCE.read_text(encoding="utf-8") == reference(), "stale: run this test with CORRAL_REWRITE=1"


def reference() -> str:
    """docs/reference/payload.md, from the schema."""
    schema = SCHEMA.json_schema()
    lines = [
        "# The payload of a task",
        "",
        "Written from the schema by `CORRAL_REWRITE=1 pytest tests/spec/test_payload.py`. Unknown keys are refused.",
        "Paths are relative to the task's working directory, `/work`.",
        "",
    ]
    for owner, keys in SCHEMA.owners().items():
        if not keys:
            continue
        lines += [f"## {owner}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [row(key, schema["properties"][key], required=key in schema["required"]) for key in keys]
        lines.append("")
    lines += ["## Objects", ""]
    for name, part in schema["$defs"].items():
        if part.get("type") != "object":
            values = ", ".join(f"`{value}`" for value in part["enum"])
            lines += [f"### {name}", "", f"{first_line(part.get('description', ''))} One of {values}.", ""]
            continue
        lines += [f"### {name}", "", first_line(part.get("description", "")), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [row(key, value, required=key in part["required"]) for key, value in part["properties"].items()]
        lines.append("")
    return "\n".join(lines)


def row(key: str, part: dict[str, Any], *, required: bool) -> str:
    default = "required" if required else f"`{msgspec.json.encode(part.get('default')).decode()}`"
    return f"| `{key}` | {type_name(part)} | {default} | {first_line(part.get('description', ''))} |"


def type_name(part: dict[str, Any]) -> str:
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in part:
        return " or ".join(type_name(each) for each in part["anyOf"])
    if part.get("type") == "array":
        return f"list of {type_name(part['items'])}"
    if part.get("type") == "object":
        return f"object of {type_name(part['additionalProperties'])}"
    return str(part.get("type", "any"))


def first_line(text: str) -> str:
    return " ".join(text.split())
