"""Where a component may call: destinations, the addresses where it finds them in its own network, and which of the
addresses behind them the worker's owner allows. Pure.

A component lives in a network of its own (native/wasm-host/apart.c). A name on its list leads to an address of loopback
there, an address on its list to itself; at each of them the worker listens. TLS is the component's own, end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_FIRST: Final = int(IPv4Address("127.0.1.1"))
_NAT64: Final = IPv6Network("64:ff9b::/96")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Destination:
    """``host`` is a name, or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Place:
    """At ``address`` (``IP:PORT``) the component finds ``destination``."""

    destination: Destination
    address: str


def places(outbound: Sequence[str]) -> tuple[Place, ...]:
    """For a revision's ``outbound``, which has been checked; each destination once."""
    found: dict[Destination, Place] = {}
    names: dict[str, str] = {}
    for text in outbound:
        parts = urlsplit(text)
        host = parts.hostname or ""
        destination = Destination(host, parts.port or _PORTS[parts.scheme])
        if (literal := _literal(host)) is None:
            where = names.setdefault(host, str(IPv4Address(_FIRST + len(names))))
        else:
            where = f"[{literal}]" if literal.version == 6 else str(literal)
        found.setdefault(destination, Place(destination, f"{where}:{destination.port}"))
    return tuple(found.values())


def hosts_text(known: Sequence[Place]) -> str:
    """The component's ``/etc/hosts``."""
    names = {each.destination.host: each.address.rpartition(":")[0] for each in known}
    lines = [f"{address} {name}" for name, address in names.items() if _literal(name) is None]
    return "\n".join(("127.0.0.1 localhost", *lines, ""))


def may_reach(address: str, also: Sequence[Network]) -> bool:
    """Whether the worker's owner lets functions reach this address: public ones, and those in ``also``."""
    reached = _innermost(ip_address(address))
    return (reached.is_global and not reached.is_multicast) or any(reached in each for each in also)


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Raises ValueError for a text that is no network."""
    return tuple(ip_network(each) for each in texts)


def _innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
