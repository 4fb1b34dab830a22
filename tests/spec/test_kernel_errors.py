"""The error tree: one page, one code each, and the page is true."""

import pickle
import re
from collections.abc import Iterator

import pytest

from corral.kernel import errors
from corral.kernel.errors import CapacityError, CorralError, DependencyError, InvalidSpec, QueueFull


def tree(root: type[CorralError] = CorralError) -> Iterator[type[CorralError]]:
    yield root
    for each in root.__subclasses__():
        yield from tree(each)


ALL = [each for each in tree() if each.__module__ == errors.__name__]


def test_every_code_names_one_class() -> None:
    codes = [each.code for each in ALL]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_says_its_code_its_status_and_its_meaning(kind: type[CorralError]) -> None:
    assert "code" in vars(kind), "a code of its own, not its parent's"
    assert 400 <= kind.status < 600
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_stands_in_the_tree_on_the_page_below_its_parent(kind: type[CorralError]) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if line.strip()]
    indents = {line.split()[0]: len(line) - len(line.lstrip()) for line in lines}

    assert kind.__name__ in indents
    for parent in kind.__bases__:
        if issubclass(parent, CorralError):
            assert indents[kind.__name__] == indents[parent.__name__] + 2


def test_exactly_the_errors_that_waiting_can_cure_are_retryable() -> None:
    assert {each for each in ALL if each.retryable} == {*tree(CapacityError), *tree(DependencyError)} & set(ALL)


def test_an_error_carries_its_facts_and_its_cure() -> None:
    error = QueueFull("too many tasks wait", cure="Wait for some of them.", limit=5, tenant="acme")

    assert str(error) == error.message == "too many tasks wait"
    assert (error.cure, error.context) == ("Wait for some of them.", {"limit": 5, "tenant": "acme"})


def test_a_mistaken_spec_lists_at_least_its_own_message() -> None:
    assert InvalidSpec("one thing").mistakes == ("one thing",)
    assert InvalidSpec("two things", mistakes=("a", "b")).mistakes == ("a", "b")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way_to_another_process(kind: type[CorralError]) -> None:
    error = pickle.loads(pickle.dumps(kind("words", cure="a cure", size=1)))

    assert (type(error), error.message, error.cure, error.context) == (kind, "words", "a cure", {"size": 1})
