"""Why two actions are two: what differs between them, as sentences. Pure; the caller brings the directories."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from corral.actions.model import Action, ActionDirectory, Command
from corral.kernel.digest import Digest

_SENTENCES_MAX = 100


@dataclass(frozen=True, slots=True)
class WholeAction:
    """An action, its command, and every directory of its inputs by digest."""

    action: Action
    command: Command
    directories: Mapping[Digest, ActionDirectory]


def explain(first: WholeAction, second: WholeAction) -> list[str]:
    """What differs, the likeliest cause first: inputs, then the command, then the rest. Empty when they are equal."""
    found: list[str] = []
    for sentence in _sentences(first, second):
        found.append(sentence)
        if len(found) == _SENTENCES_MAX:
            found.append("and more")
            break
    return found


def _sentences(first: WholeAction, second: WholeAction) -> Iterator[str]:
    yield from _inputs(first, second)
    before, after = first.command, second.command
    yield from _arguments(before.arguments, after.arguments)
    yield from _table("the environment variable", dict(before.environment), dict(after.environment))
    for what, old, new in (
        ("the working directory", before.working_directory or ".", after.working_directory or "."),
        ("the promised outputs", ", ".join(before.outputs), ", ".join(after.outputs)),
        ("the style of outputs", before.style.value, after.style.value),
        ("the timeout", first.action.timeout_s, second.action.timeout_s),
        ("do_not_cache", first.action.do_not_cache, second.action.do_not_cache),
        ("the salt", first.action.salt.hex(), second.action.salt.hex()),
    ):
        if old != new:
            yield f'{what} was "{old}" and is "{new}"'
    platforms = [dict(each.action.platform or each.command.platform) for each in (first, second)]
    yield from _table("the platform property", platforms[0], platforms[1])


def _inputs(first: WholeAction, second: WholeAction) -> Iterator[str]:
    waiting = [("", first.action.input_root, second.action.input_root)]
    while waiting:
        prefix, before, after = waiting.pop()
        if before == after:
            continue
        old, new = _nodes(first.directories[before]), _nodes(second.directories[after])
        for name in sorted(old.keys() | new.keys()):
            path, left, right = f"{prefix}{name}", old.get(name), new.get(name)
            if left == right:
                continue
            if left is None or right is None:
                yield f"the input {path} is {'new' if left is None else 'gone'}"
            elif isinstance(left, Digest) and isinstance(right, Digest):
                waiting.append((f"{path}/", left, right))
            else:
                yield f"the input {path} was {_named(left)} and is {_named(right)}"


_Node = Digest | tuple[str, ...]


def _nodes(directory: ActionDirectory) -> dict[str, _Node]:
    found: dict[str, _Node] = {each.name: each.digest for each in directory.directories}
    for file in directory.files:
        found[file.name] = (str(file.digest), "executable" if file.executable else "")
    for link in directory.symlinks:
        found[link.name] = (f"a link to {link.target}",)
    return found


def _named(node: _Node) -> str:
    return "a directory" if isinstance(node, Digest) else " ".join(part for part in node if part)


def _arguments(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    if before == after:
        return
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, left, left_end, right, right_end in matcher.get_opcodes():
        old, new = " ".join(before[left:left_end]), " ".join(after[right:right_end])
        if kind == "insert":
            yield f'the arguments got "{new}" before argument {left}'
        elif kind == "delete":
            yield f'the arguments lost "{old}" at argument {left}'
        elif kind == "replace":
            yield f'argument {left} was "{old}" and is "{new}"'


def _table(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield f'{what} {name} is new: "{after[name]}"'
        elif name not in after:
            yield f'{what} {name} is gone; it was "{before[name]}"'
        elif before[name] != after[name]:
            yield f'{what} {name} was "{before[name]}" and is "{after[name]}"'
