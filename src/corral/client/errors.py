"""Errors across the wire: from the kernel's tree to problem+json and back, by the stable code."""

from http import HTTPStatus
from typing import Final

from corral.client.model import Problem
from corral.kernel.errors import CorralError, InvalidSpec


def _tree(root: type[CorralError]) -> dict[str, type[CorralError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == CorralError.__module__:  # only the kernel's errors travel
            found.update(_tree(child))
    return found


ERRORS_BY_CODE: Final = _tree(CorralError)


def problem_of(error: CorralError, *, request_id: str = "") -> Problem:
    """The error as REST writes it."""
    return Problem(
        type=f"urn:corral:error:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.message,
        code=error.code,
        cause=dict(error.context),
        cure=error.cure,
        mistakes=error.mistakes if isinstance(error, InvalidSpec) else (),
        retryable=error.retryable,
        request_id=request_id,
    )


def error_of(problem: Problem) -> CorralError:
    """The error that a problem stands for; an unknown code becomes a plain CorralError that keeps the text."""
    kind = ERRORS_BY_CODE.get(problem.code, CorralError)
    context = {str(key): value for key, value in problem.cause.items() if key not in ("message", "cure", "mistakes")}
    if issubclass(kind, InvalidSpec):
        return kind(problem.detail, cure=problem.cure, mistakes=problem.mistakes, **context)
    return kind(problem.detail, cure=problem.cure, **context)
