"""``HOST:PORT`` as people write it."""

from corral.kernel.errors import InvalidSpec


def split_address(address: str) -> tuple[str, int]:
    """``"127.0.0.1:7070"`` → host and port; ``"[::1]:7070"`` works too. Raises InvalidSpec."""
    problem = address_problem(address)
    if problem:
        raise InvalidSpec(problem, field="address")
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_problem(address: str) -> str:
    """What is wrong with an address, in one sentence; "" when it is right."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        return f'"{address}" is not an address; write HOST:PORT, for example "127.0.0.1:7070"'
    return ""
