"""The limits of functions on one worker."""

from ipaddress import ip_network
from typing import Final

import msgspec

from corral.functions.front.limits import FrontConfig
from corral.kernel.errors import InvalidSpec

GIB: Final = 1024**3
MIB: Final = 1024**2


class VolumeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the worker that programs of some tenants may see.

    Attributes:
        path: absolute.
        writable: whether a program may ask to write there.
        tenants: who may use it; empty means nobody.
    """

    path: str
    writable: bool = False
    tenants: tuple[str, ...] = ()


class OutboundConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls of functions to the outside, of those whose revision lists destinations.

    Attributes:
        networks: what they may reach beside public addresses, such as ``10.1.0.0/16`` or ``127.0.0.1/32``.
        connections: open at once, of one instance.
        connect_s: how long a connection may take to be there.
        half_open_s: how long one side may go on when the other has ended.
    """

    networks: tuple[str, ...] = ()
    connections: int = 64
    connect_s: float = 10.0
    half_open_s: float = 30.0

    def __post_init__(self) -> None:
        for text in self.networks:
            try:
                ip_network(text)
            except ValueError as error:
                raise InvalidSpec(f'outbound.networks: "{text}" is no network: {error}') from error


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Programs and their processes on one worker. Sizes in bytes, times in seconds.

    Attributes:
        enabled: whether this worker hosts functions.
        front: the HTTP front.
        instances: at most on this worker.
        threads: requests of one tenant that run at once.
        queue: requests of one tenant that wait for a thread.
        running: requests of one tenant that use a processor at once; 0 takes all processors but one (at least one).
        tenant_memory_bytes: linear memory of all requests of one tenant that run at once.
        memory_bytes: largest ``limits.memory_bytes`` of a program here.
        table_elements: largest ``limits.table_elements`` of a program here.
        module_bytes: largest program.
        code_bytes: largest compiled program.
        cache_bytes: of compiled programs that are kept.
        compile_memory_bytes: address space of one compilation.
        compilations: at once.
        trees_bytes: of one tree that a program sees.
        files: open at once in one tenant's process.
        file_bytes: largest file that a program may write in a volume.
        start_s: how long a process may take to start.
        idle_s: how long a tenant's process stays without instances.
        component_threads: of one component's process; 0 takes as many as ``running`` does.
        component_bytes: of memory that one component's process may have beside that of its requests.
        outbound: where functions may call.
        otlp: where traces go, too: a collector's address for OTLP over HTTP, such as ``http://127.0.0.1:4318``.
        first_user: when the worker is root, tenants' processes run as this user id and those after it.
        volumes: directories that programs may ask for, by name.
    """

    enabled: bool = True
    front: FrontConfig = FrontConfig()
    instances: int = 2000
    threads: int = 32
    queue: int = 1024
    running: int = 0
    tenant_memory_bytes: int = 1 * GIB
    memory_bytes: int = 1 * GIB
    table_elements: int = 100_000
    module_bytes: int = 64 * MIB
    code_bytes: int = 512 * MIB
    cache_bytes: int = 2 * GIB
    compile_memory_bytes: int = 4 * GIB
    compilations: int = 2
    trees_bytes: int = 256 * MIB
    files: int = 8192
    file_bytes: int = 1 * GIB
    start_s: float = 10.0
    idle_s: float = 30.0
    component_threads: int = 0
    component_bytes: int = 256 * MIB
    outbound: OutboundConfig = OutboundConfig()
    otlp: str = ""
    first_user: int = 1_900_000_000
    volumes: dict[str, VolumeConfig] = {}

    def __post_init__(self) -> None:
        if self.otlp and not self.otlp.startswith(("http://", "https://")):
            raise InvalidSpec(f'otlp: "{self.otlp}" is no URL; write http://HOST:4318')
