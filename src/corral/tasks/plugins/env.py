"""Plugin ``env``: the command's environment, exactly.

Precedence, later wins: the sandbox's basics, ``CORRAL_TASK_ID`` and ``CORRAL_RUN_ID``, what the worker's
configuration adds, the payload's ``env``, the payload's ``secrets``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec

from corral.tasks.core_fields import ARGUMENT_BYTES_MAX, refuse
from corral.tasks.paths import printable
from corral.tasks.plugin import ExecDraft, Plugin, RunContext, TaskPlugin

VARIABLES_MAX: Final = 10_000
BASICS: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EnvConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``extra`` is added to the environment of every task."""

    extra: dict[str, str] = {}

    def __post_init__(self) -> None:
        mistakes = list(variable_mistakes(self.extra, "extra"))
        if mistakes:
            raise ValueError(mistakes[0])


class EnvFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload fields."""

    env: Annotated[dict[str, str], msgspec.Meta(description="Environment variables")] = {}
    secrets: Annotated[
        dict[str, str],
        msgspec.Meta(description="Variable → name of a secret of the tenant; its value is masked in the log"),
    ] = {}

    def __post_init__(self) -> None:
        mistakes = [*variable_mistakes(self.env, "env"), *variable_mistakes(self.secrets, "secrets")]
        mistakes += [f"secrets.{name}: is also in env; give it once" for name in self.secrets if name in self.env]
        refuse(mistakes)


class EnvPlugin(Plugin):
    """Gives every command its environment."""

    name = "env"
    fields = EnvFields

    def __init__(self, config: EnvConfig | None = None) -> None:
        self._extra = (config or EnvConfig()).extra

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        if fields is None:
            return None
        assert isinstance(fields, EnvFields)
        given = run.claim.secrets
        refuse(
            [
                f'secrets.{variable}: the tenant has no secret "{printable(name)}"'
                for variable, name in fields.secrets.items()
                if name not in given
            ]
        )
        ref = run.claim.ref
        return _TaskEnv(
            {
                "HOME": run.work,
                "CORRAL_TASK_ID": ref.task_id,
                "CORRAL_RUN_ID": str(ref.run),
                **self._extra,
                **fields.env,
                **{variable: given[name] for variable, name in fields.secrets.items()},
            }
        )


class _TaskEnv(TaskPlugin):
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def build(self, draft: ExecDraft) -> None:
        draft.env = {**BASICS, **draft.env, **self._env}  # what the image brings is over the basics, under all else


def variable_mistakes(variables: Mapping[str, str], field: str) -> Iterator[str]:
    """Why these are no environment variables."""
    if len(variables) > VARIABLES_MAX:
        yield f"{field}: holds {len(variables)} variables; at most {VARIABLES_MAX} are allowed"
        return
    for name, value in variables.items():
        at = f"{field}.{printable(name)}"
        if _NAME.fullmatch(name) is None:
            yield f"{at}: is no name of a variable; use letters, digits and _, not beginning with a digit"
        if "\x00" in value:
            yield f"{at}: the value holds a NUL byte"
        if len(name) + len(value.encode(errors="replace")) + 1 > ARGUMENT_BYTES_MAX:
            yield f"{at}: is longer than the {ARGUMENT_BYTES_MAX} bytes that Linux takes"
