"""From configuration to tenants: every mistake found is one clear sentence, and all are found at once."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Final

from corral.tenants.model import DEFAULT_TENANT, AccessConfig, Tenant, TenantConfig
from corral.tenants.tokens import configured_hash

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SECRET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SCOPE: Final = re.compile(r"[a-z0-9:/_.-]*\*?")
_SECRET_BYTES: Final = 64 * 1024


class Reading:
    """One pass over the configuration; ``mistakes`` holds what is wrong with it.

    Attributes:
        tenants: by name; with none configured, the default one.
        tenant_tokens: hash to the tenant's name.
        admin_tokens, worker_tokens: hashes.
    """

    def __init__(self, tenants: Mapping[str, TenantConfig], access: AccessConfig, env: Mapping[str, str]) -> None:
        self.mistakes: list[str] = []
        self._env = env
        self._owners: dict[str, str] = {}
        self.tenant_tokens: dict[str, str] = {}
        self.tenants = {name: self._tenant(name, config) for name, config in tenants.items()}
        self.admin_tokens = tuple(self._tokens("access.admin_tokens", access.admin_tokens))
        self.worker_tokens = tuple(self._tokens("access.worker_tokens", access.worker_tokens))
        self._check_reachable(tenants)
        if not self.tenants:
            self.tenants = {DEFAULT_TENANT: Tenant(name=DEFAULT_TENANT)}

    def _tenant(self, name: str, config: TenantConfig) -> Tenant:
        where = f"tenants.{name}"
        if not is_tenant_name(name):
            self.mistakes.append(
                f'tenants: "{name}" is not a name; use 1 to 63 of a-z, 0-9 and "-", beginning with a letter or digit'
            )
        for token in self._tokens(f"{where}.tokens", config.tokens):
            self.tenant_tokens[token] = name
        self._check_limits(where, config)
        for scope in config.scopes:
            if not scope or not _SCOPE.fullmatch(scope):
                self.mistakes.append(f'{where}.scopes: "{scope}" is not a scope; write for example "tasks:*"')
        return Tenant(
            name=name,
            scopes=config.scopes,
            max_pending=config.max_pending,
            max_running=config.max_running,
            weight=config.weight,
            blob_bytes=config.blob_bytes,
            secrets=dict(self._secrets(where, config.secrets)),
        )

    def _check_limits(self, where: str, config: TenantConfig) -> None:
        for name in ("max_pending", "max_running"):
            if getattr(config, name) < 1:
                self.mistakes.append(f"{where}.{name}: must be at least 1, not {getattr(config, name)}")
        if not (isfinite(config.weight) and 0.001 <= config.weight <= 1000):
            self.mistakes.append(f"{where}.weight: must be between 0.001 and 1000, not {config.weight:g}")
        if config.blob_bytes is not None and config.blob_bytes < 0:
            self.mistakes.append(f"{where}.blob_bytes: must not be negative, not {config.blob_bytes}")

    def _tokens(self, where: str, texts: Iterable[str]) -> Iterable[str]:
        for number, text in enumerate(texts):
            try:
                token = configured_hash(text)
            except ValueError as error:
                self.mistakes.append(f"{where}[{number}]: {error}")
                continue
            if (owner := self._owners.setdefault(token, where)) != where:
                self.mistakes.append(f"{where}[{number}]: this token is in {owner} already; one token names one caller")
            yield token

    def _check_reachable(self, tenants: Mapping[str, TenantConfig]) -> None:
        """A tenant without a token is a mistake, except the default one where nobody needs a token."""
        anonymous = not self.tenant_tokens and not self.admin_tokens
        for name, config in tenants.items():
            if not config.tokens and not (anonymous and name == DEFAULT_TENANT):
                self.mistakes.append(
                    f"tenants.{name}.tokens: there is none, and every tenant needs one, also beside a certificate; "
                    "make one with `corral token new`"
                )

    def _secrets(self, where: str, references: Mapping[str, str]) -> Iterable[tuple[str, str]]:
        for name, reference in references.items():
            if not _SECRET_NAME.fullmatch(name):
                self.mistakes.append(f'{where}.secrets: "{name}" is not a name; use letters, digits and "_"')
                continue
            try:
                yield name, self._secret(reference)
            except ValueError as error:
                self.mistakes.append(f"{where}.secrets.{name}: {error}")

    def _secret(self, reference: str) -> str:
        kind, _, rest = reference.partition(":")
        readers: dict[str, Callable[[str], str]] = {"env": self._from_env, "file": _from_file, "literal": str}
        if kind not in readers:  # without the text: it may be the secret itself
            raise ValueError('write "env:NAME", "file:PATH" or "literal:TEXT"')
        value = readers[kind](rest)
        if not value:
            raise ValueError("the secret is empty")
        if len(value.encode("utf-8", "surrogatepass")) > _SECRET_BYTES:
            raise ValueError(f"a secret has at most {_SECRET_BYTES // 1024} KiB")
        return value

    def _from_env(self, name: str) -> str:
        if name not in self._env:
            raise ValueError(f'the environment variable "{name}" is not set')
        return self._env[name]


def is_tenant_name(text: str) -> bool:
    """One component of a path and of a URL, the same on every file system."""
    return _NAME.fullmatch(text) is not None


def _from_file(path: str) -> str:
    if not os.path.isabs(path):
        raise ValueError(f'"{path}" must be an absolute path')
    try:
        with Path(path).open("rb") as file:
            content = file.read(_SECRET_BYTES + 2)
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f'"{path}" is not text in UTF-8') from error
    except OSError as error:
        raise ValueError(f'"{path}" cannot be read: {error.strerror}') from error
