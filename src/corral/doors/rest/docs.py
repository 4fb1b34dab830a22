"""Writes ``docs/reference/rest.md`` from the routes themselves (``python -m corral.doors.rest.docs``)."""

from types import SimpleNamespace
from typing import Any, Final, cast

from corral.client.errors import ERRORS_BY_CODE
from corral.doors.rest.app import build_rest
from corral.doors.rest.services import RestLimits, Services

_HEAD: Final = """\
# REST

Everything is under `/api/v1`, except `/health`, `/ready` and `/metrics`; the machine-readable description (OpenAPI 3.1)
is at `/schema`. This page is generated from the code (`python -m corral.doors.rest.docs > docs/reference/rest.md`).

- **Who asks**: `Authorization: Bearer <token>`. Without any configured token only loopback is served, and pages of
  other origins are refused. Scopes are `tasks:read`, `tasks:write`, `blobs:…`, `functions:…`, `fleet:…`, `ledger:read`.
- **TLS**: it is `https://` where other machines can reach it ([a certificate](../howto/operate.md#a-certificate)).
- **Times** are Unix seconds, **sizes** are bytes; durations in a task may be written `"10m"`.
- **Lists** are pages, newest first: pass `next` of one page as `after` of the following one.
- **Waiting**: `GET /tasks/{id}?wait_s=20&known_phase=pending&known_run=0` answers when the task is no longer so.
- **Streams**: logs are plain bytes with `follow=1`, or server-sent events whose ids are offsets; a stream that breaks
  instead of ending is taken up again where it broke.
- **Repeating** a submission with the same `Idempotency-Key` (or the same `ids`) queues nothing new.
"""


def reference() -> str:
    """The whole page."""
    app = build_rest(cast(Services, SimpleNamespace(limits=RestLimits())))
    schema: dict[str, Any] = app.openapi_schema.to_schema()
    lines = [_HEAD]
    by_tag: dict[str, list[str]] = {}
    for path, operations in sorted(schema["paths"].items()):
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["health"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    for tag in schema["tags"]:
        lines.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}.\n")
        lines += sorted(set(by_tag.get(tag["name"], [])))
        lines.append("")
    lines.append(
        "## Errors\n\n`application/problem+json` with `code`, `detail`, `cause` (facts), `cure` and `mistakes`.\n"
    )
    lines.append("| code | status | retry | meaning |\n|---|---|---|---|")
    for code, kind in sorted(ERRORS_BY_CODE.items()):
        meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {meaning} |")
    return "\n".join(lines).rstrip() + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    text = f"- **`{method.upper()} {path}`**: {operation.get('summary', '')}"
    queries = [f"`{each['name']}`" for each in operation.get("parameters", []) if each["in"] in ("query", "header")]
    description = operation.get("description", "")
    if queries:
        text += f". Parameters: {', '.join(queries)}"
    return f"{text}. {description}".replace("..", ".")


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201 (this is what it is for)
