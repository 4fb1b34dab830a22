"""The functions of one worker, put together: the compiler, tenants' processes, instances, the front.

A tenant's core modules share one native host (another one for programs with another stack or with fuel), so a crash
takes nobody else along; a component has a process of its own. Whatever ends unasked makes its instances *failed*, and
the scheduler orders new ones.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import structlog

from corral.blobs.ports import BlobReader
from corral.functions.engine.compiler import CannotCompile, Code, Compiler
from corral.functions.engine.component_process import (
    CappedLogs,
    ComponentProcess,
    Seen,
    apart_arguments,
    private_sockets,
    serve_arguments,
    writable_bytes,
)
from corral.functions.engine.config import EngineConfig
from corral.functions.engine.destinations import places
from corral.functions.engine.front_process import FrontProcess
from corral.functions.engine.host_process import HostProcess
from corral.functions.engine.instance import Instance
from corral.functions.engine.outbound import Outbound
from corral.functions.engine.programs import EngineParts, find_parts
from corral.functions.engine.worlds import Worlds, open_directory
from corral.functions.frames import Program
from corral.functions.model import (
    Demand,
    EngineCapacity,
    InstanceOrder,
    InstancePhase,
    InstanceReport,
    Kind,
    LogLine,
    Prepared,
    PrepareOrder,
    RevisionKey,
    RevisionSpec,
)
from corral.functions.routing import RoutingUpdate
from corral.functions.traces import STREAM, Trace
from corral.kernel.clock import Clock
from corral.kernel.concurrency import background
from corral.kernel.errors import CorralError, InvalidSpec, SandboxFailed
from corral.sandboxes.runtimes.tenant_users import TenantUsers

_SOCKET_PATH_MAX: Final = 90
_LOOK_S: Final = 1.0
_DRAIN_LOOK_S: Final = 0.05
_ENDED_S: Final = 10.0
_FOR_EVER_S: Final = 1e9
_LINE_MAX: Final = 4096
_ENGINE_NOTE: Final = "note: using the `WASMTIME_BACKTRACE_DETAILS"
_log = structlog.get_logger("corral.functions.engine")

HostKey = tuple[str, int, bool]
"""Tenant, stack size, with fuel."""


class WorkerFunctions:
    """``FunctionsHost``, as an asynchronous context manager: everything has ended when the block is left."""

    def __init__(
        self,
        data: Path,
        blobs: BlobReader,
        config: EngineConfig,
        clock: Clock,
        *,
        on_trace: Callable[[Trace], None] = lambda trace: None,
    ) -> None:
        self._data, self._blobs, self._config, self._clock = data, blobs, config, clock
        self._parts = EngineParts(trouble="functions are switched off on this worker (functions.enabled)")
        self._instances: dict[str, Instance] = {}
        self._hosts: dict[HostKey, HostProcess] = {}
        self._unused_since_s: dict[HostKey, float] = {}
        self._on_change: Callable[[], None] = _nothing
        self._on_log: Callable[[LogLine], None] = _no_line
        self._on_trace = on_trace
        self._users = TenantUsers(config.first_user) if os.geteuid() == 0 else None
        self._front = FrontProcess(config.front, on_news=self._front_said)
        self._told: dict[RevisionKey, int] = {}
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._compiler: Compiler
        self._worlds: Worlds
        self._sockets: Path
        self._socket_number = 0

    async def __aenter__(self) -> Self:
        if self._config.enabled:
            self._parts = self._open()
        ready = asyncio.Event()
        await self._stack.enter_async_context(background(self._run(ready), name="functions"))
        await ready.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._front.close()
        for instance in self._instances.values():
            if instance.process is not None:
                instance.process.stop()
        for host in self._hosts.values():
            host.stop()
        await self._stack.__aexit__(kind, error, trace)

    def connect(self, *, on_change: Callable[[], None], on_log: Callable[[LogLine], None]) -> None:
        self._on_change, self._on_log = on_change, on_log

    # -- Engine --

    def capacity(self) -> EngineCapacity:
        if self._parts.trouble:
            return EngineCapacity(trouble=self._parts.trouble)
        kinds = (Kind.WASI_COMMAND, Kind.REACTOR, *((Kind.HTTP_COMPONENT,) if self._parts.wasmtime else ()))
        return EngineCapacity(
            engine=self._parts.version,
            kinds=kinds,
            instances=self._config.instances,
            memory_bytes=self._config.tenant_memory_bytes,
            front=self._front.address,
            front_trouble=self._front.trouble,
        )

    async def prepare(self, order: PrepareOrder) -> Prepared:
        try:
            self._check(order.key.function.tenant, order.spec)
            code = await self._compiler.code(order.key.function.tenant, order.spec)
        except CannotCompile as error:
            return Prepared(key=order.key, code=error.code, text=error.text)
        except CorralError as error:
            return Prepared(key=order.key, code=error.code, text=error.message)
        os.close(code.descriptor)
        return Prepared(key=order.key, compile_s=code.compile_s, cached=code.cached, code_bytes=code.size_bytes)

    # -- Instances --

    async def start(self, order: InstanceOrder) -> None:
        if order.id not in self._instances:
            self._instances[order.id] = Instance(order)
            self._spawn(self._start(self._instances[order.id]))

    async def stop(self, instance_id: str, *, drain_s: float) -> None:
        instance = self._instances.get(instance_id)
        if instance is None or instance.over or instance.phase is InstancePhase.DRAINING:
            return
        starting = instance.phase is InstancePhase.STARTING
        instance.phase = InstancePhase.DRAINING
        if not starting:  # else the start ends it as soon as it can
            self._spawn(self._drain(instance, drain_s))

    def forget(self, instance_id: str) -> None:
        instance = self._instances.get(instance_id)
        if instance is not None and instance.over:
            del self._instances[instance_id]

    def reports(self) -> Sequence[InstanceReport]:
        living = [each for each in self._instances.values() if each.process is not None and not each.over]
        sharing = Counter(each.process.pid for each in living if each.process is not None)
        memory = {pid: _memory_of(pid) for pid in sharing}
        reports = []
        for each in self._instances.values():
            pid = each.process.pid if each.process is not None else 0
            now, peak = memory.get(pid, (0, 0))
            own = isinstance(each.process, ComponentProcess)  # else a request's peak is known better than the process's
            resident = now // max(1, sharing[pid])
            reports.append(each.report(resident_bytes=resident, peak_bytes=peak if own else 0, peer=self._front.public))
        return reports

    # -- Front --

    @property
    def front_pid(self) -> int | None:
        """Of the front, while it runs."""
        return self._front.pid

    def update_routes(self, update: RoutingUpdate) -> bool:
        return self._front.update(update)

    def routes_in_use(self) -> tuple[str, int]:
        return self._front.in_use()

    def demands(self) -> Sequence[Demand]:
        self._told = {each.key: each.waiting for each in self._front.demands}
        return self._front.demands

    # -- inside --

    def _open(self) -> EngineParts:
        """Make what is needed in the data directory, and take the front's port."""
        parts = find_parts()
        home = self._data / "functions"
        self._sockets = home / "run"
        if len(str(self._sockets)) > _SOCKET_PATH_MAX:
            return EngineParts(trouble=f"{self._sockets} is too long a path for sockets; use a shorter data directory")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_sockets(self._sockets)
        self._compiler = Compiler(home / "code", parts, self._blobs, self._config, self._clock)
        self._worlds = Worlds(home / "trees", self._blobs, self._config.volumes, tree_bytes=self._config.trees_bytes)
        if not parts.trouble:
            self._front.listen()
        return parts

    async def _run(self, ready: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            ready.set()
            if not self._parts.trouble:
                group.create_task(self._front.run(), name="front")
            while True:
                await asyncio.sleep(_LOOK_S)
                self._end_unused()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(work)

    def _front_said(self, newer_routes: bool) -> None:
        """Tell at once what cannot wait: newer routes, a first waiting request, or twice as many as were told."""
        self._hear_of_components()
        traces, self._front.traces = self._front.traces, []
        for trace in traces:
            self._on_trace(trace)
            self._on_log(
                LogLine(
                    key=trace.key,
                    at_s=trace.at_s,
                    request_id=trace.request_id,
                    instance=trace.instance,
                    stream=STREAM,
                    text=msgspec.json.encode(trace).decode(),
                )
            )
        if newer_routes:
            self._on_change()
            return
        for each in self._front.demands:
            if each.waiting and each.waiting >= 2 * self._told.get(each.key, 0):
                self._on_change()
                return

    def _check(self, tenant: str, spec: RevisionSpec) -> None:
        """Raises CannotCompile, InvalidSpec for what this worker does not give."""
        limits, config = spec.limits, self._config
        if self._parts.trouble:
            raise CannotCompile("engine-lost", self._parts.trouble)
        for name, wanted, most in (
            ("memory_bytes", limits.memory_bytes, config.memory_bytes),
            ("table_elements", limits.table_elements, config.table_elements),
        ):
            if wanted > most:
                raise InvalidSpec(f"limits.{name}: {wanted} is more than workers give, {most}", field=f"limits.{name}")
        self._worlds.check(tenant, spec.preopens)

    async def _start(self, instance: Instance) -> None:
        """Nothing leaves this: what goes wrong is in the instance's report."""
        began_s = self._clock.monotonic_s()
        try:
            self._check(instance.order.key.function.tenant, instance.order.spec)
            code = await self._compiler.code(instance.order.key.function.tenant, instance.order.spec)
            try:
                process = await self._enter(instance, code)
            finally:
                os.close(code.descriptor)
            spent_s = self._clock.monotonic_s() - began_s
            instance.ready(process, started_s=self._clock.now_s(), start_s=spent_s, cold=not code.cached)
        except CannotCompile as error:
            instance.fail(error.code, error.text, blame=error.code not in ("store-unavailable", "engine-lost"))
        except SandboxFailed as error:
            instance.fail("engine-lost", error.message, blame=False)
        except CorralError as error:
            instance.fail(error.code, error.message, blame=isinstance(error, InvalidSpec))
        except OSError as error:
            instance.fail("engine-lost", f"the worker could not start it: {error.strerror}", blame=False)
        if instance.phase is InstancePhase.DRAINING:
            await self._drain(instance, 0)
        elif instance.over:
            await self._give_back(instance)
        self._on_change()

    async def _enter(self, instance: Instance, code: Code) -> HostProcess | ComponentProcess:
        if instance.order.spec.kind is Kind.HTTP_COMPONENT:
            return await self._serve_component(instance, code)
        host = self._host(instance.order)
        tenant = instance.order.key.function.tenant
        paths, instance.trees = await self._worlds.take(tenant, instance.order.spec.preopens)
        descriptors: list[int] = []
        try:
            for path in paths:
                descriptors.append(open_directory(path))
            loaded = await host.load(_program(instance.order, code), [code.descriptor, *descriptors])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if not loaded:
            raise SandboxFailed("the host of functions refused the program")
        return host

    def _host(self, order: InstanceOrder) -> HostProcess:
        """The tenant's process for this kind of program; started when there is none. Raises SandboxFailed."""
        key = (order.key.function.tenant, order.spec.limits.stack_bytes, order.spec.limits.fuel > 0)
        host = self._hosts.get(key)
        if host is None or not host.alive:
            arguments = self._host_arguments(key)
            host = self._hosts[key] = HostProcess.start(arguments, self._new_socket(), on_log=self._host_log)
            self._spawn(self._watch(key, host))
        self._unused_since_s.pop(key, None)
        return host

    def _new_socket(self) -> Path:
        self._socket_number += 1
        return self._sockets / f"{self._socket_number}.sock"

    def _running(self) -> int:
        return self._config.running or max(1, (os.cpu_count() or 1) - 1)

    def _host_arguments(self, key: HostKey) -> list[str]:
        tenant, stack_bytes, fuel = key
        config = self._config
        values = {
            "threads": config.threads,
            "queue": config.queue,
            "running": self._running(),
            "memory-bytes": config.tenant_memory_bytes,
            "memory-max": config.memory_bytes,
            "table-elements": config.table_elements,
            "stack-bytes": stack_bytes,
            "fuel": int(fuel),
            "files": config.files,
            "file-bytes": config.file_bytes,
            **self._user(tenant),
        }
        return [self._parts.host, self._parts.library, "serve", *(f"{name}={value}" for name, value in values.items())]

    def _user(self, tenant: str) -> dict[str, int]:
        if self._users is None:
            return {}
        user = self._users.of(tenant)
        return {"user": user, "group": user}

    async def _watch(self, key: HostKey, host: HostProcess) -> None:
        await host.wait_ended(within_s=_FOR_EVER_S)
        unasked = host.alive or self._hosts.get(key) is host
        host.stop()
        if self._hosts.get(key) is host:
            del self._hosts[key]
        lost = [each for each in self._instances.values() if each.process is host and not each.over]
        for instance in lost:
            instance.fail("engine-lost", "the process that hosted it ended", blame=False)
            await self._give_back(instance)
        if lost and unasked:
            _log.warning("a host of functions ended", tenant=key[0], status=host.status, instances=len(lost))
        if lost:
            self._on_change()

    async def _serve_component(self, instance: Instance, code: Code) -> ComponentProcess:
        spec, tenant = instance.order.spec, instance.order.key.function.tenant
        paths, instance.trees = await self._worlds.take(tenant, spec.preopens)
        seen = [
            Seen(path=path, guest=each.guest, writable=each.writable)
            for path, each in zip(paths, spec.preopens, strict=True)
        ]
        known = places(spec.outbound)
        argv = apart_arguments(self._parts.host, self._component_limits(tenant, spec), known, seen)
        copy = await asyncio.to_thread(_copy_in_memory, code.descriptor)
        try:
            process = await ComponentProcess.start(
                argv,
                serve_arguments(self._parts.wasmtime, spec, seen),
                copy,
                path=self._new_socket(),
                places=known,
                outbound=Outbound(self._config.outbound, on_trouble=partial(self._line, instance, "engine", "")),
                env={"TOKIO_WORKER_THREADS": str(self._config.component_threads or self._running())},
                on_line=self._component_log(instance),
                within_s=self._config.start_s,
            )
        finally:
            os.close(copy)
        self._spawn(self._watch_component(instance, process))
        return process

    def _component_limits(self, tenant: str, spec: RevisionSpec) -> dict[str, int]:
        data_bytes = min(writable_bytes(spec), self._config.tenant_memory_bytes) + self._config.component_bytes
        return {"files": 1024, "file-bytes": self._config.file_bytes, "data-bytes": data_bytes, **self._user(tenant)}

    def _component_log(self, instance: Instance) -> Callable[[str, str, str], None]:
        """What its requests write, each so much; ``serve-N`` is the server's number of the request."""
        capped = CappedLogs(instance.order.spec.limits.log_bytes)

        def heard(stream: str, number: str, text: str) -> None:
            if kept := capped.take(number, text) if number else text:
                self._line(instance, stream, f"serve-{number}" if number else "", kept)

        return heard

    def _hear_of_components(self) -> None:
        """What the front counted; and which instances used more processor time than their requests may."""
        for instance_id, counters in self._front.counters.items():
            instance = self._instances.get(instance_id)
            if instance is not None and isinstance(instance.process, ComponentProcess):
                instance.process.counters = counters
        over, self._front.over = self._front.over, []
        for instance_id in over:
            instance = self._instances.get(instance_id)
            if instance is None or instance.over or not isinstance(instance.process, ComponentProcess):
                continue
            text = "stopped: its requests used more processor time than limits.cpu_s"
            self._line(instance, "engine", "", text)
            instance.fail("cpu-exceeded", text, blame=False)
            instance.process.stop()
            self._on_change()

    async def _watch_component(self, instance: Instance, process: ComponentProcess) -> None:
        await process.wait_ended(within_s=_FOR_EVER_S)
        process.stop()
        if not instance.over:
            instance.fail("engine-lost", "the process that hosted it ended", blame=False)
            self._on_change()
        await self._give_back(instance)

    async def _drain(self, instance: Instance, drain_s: float) -> None:
        process = instance.process
        end_s = self._clock.monotonic_s() + drain_s
        if isinstance(process, HostProcess):
            await asyncio.sleep(min(drain_s, 2 * _DRAIN_LOOK_S))  # what is on its way from a front comes in
            while instance.counters.in_flight and process.alive and self._clock.monotonic_s() < end_s:  # noqa: ASYNC110
                await asyncio.sleep(_DRAIN_LOOK_S)
            process.unload(instance.order.id)
        elif process is not None:
            await asyncio.sleep(min(drain_s, instance.order.spec.limits.wall_s) if self._busy(instance) else 0)
            instance.phase = InstancePhase.STOPPED
            process.stop()
            await process.wait_ended(within_s=_ENDED_S)
        if not instance.over:
            instance.phase = InstancePhase.STOPPED
        await self._give_back(instance)
        self._on_change()

    async def _give_back(self, instance: Instance) -> None:
        trees, instance.trees = instance.trees, []
        await self._worlds.give_back(trees)

    def _busy(self, instance: Instance) -> bool:
        return any(each.key == instance.order.key and each.in_flight for each in self._front.demands)

    def _end_unused(self) -> None:
        now_s = self._clock.monotonic_s()
        used = {id(each.process) for each in self._instances.values() if not each.over}
        starting = {each.order.key.function.tenant for each in self._instances.values() if each.process is None}
        for key, host in list(self._hosts.items()):
            if id(host) in used or key[0] in starting:
                self._unused_since_s.pop(key, None)
            elif now_s - self._unused_since_s.setdefault(key, now_s) > self._config.idle_s:
                del self._hosts[key]
                host.stop()

    def _host_log(self, stream: str, instance_id: str, request_id: str, data: bytes) -> None:
        instance = self._instances.get(instance_id)
        if instance is not None:
            for line in data.decode("utf-8", "replace").splitlines():
                if stream != "engine" or (line.strip() and not line.startswith(_ENGINE_NOTE)):
                    self._line(instance, stream, request_id, line)

    def _line(self, instance: Instance, stream: str, request_id: str, text: str) -> None:
        self._on_log(
            LogLine(
                key=instance.order.key,
                at_s=self._clock.now_s(),
                request_id=request_id,
                instance=instance.order.id,
                stream=stream,
                text=text[:_LINE_MAX],
            )
        )


def _program(order: InstanceOrder, code: Code) -> Program:
    spec, limits = order.spec, order.spec.limits
    return Program(
        key=order.id,
        code=code.key,
        reactor=spec.kind is Kind.REACTOR,
        handler=spec.handler,
        memory_bytes=limits.memory_bytes,
        table_elements=limits.table_elements,
        fuel=limits.fuel,
        response_bytes=limits.response_bytes,
        log_bytes=limits.log_bytes,
        cpu_ns=int(limits.cpu_s * 1e9),
        args=(order.key.function.name, *spec.args),
        env=spec.env,
        preopens=[(each.guest, each.writable) for each in spec.preopens],
    )


def _copy_in_memory(descriptor: int) -> int:
    """The code for a process of another user, which may not open ours by its path."""
    copy = os.memfd_create("component", os.MFD_CLOEXEC)
    place, size = 0, os.fstat(descriptor).st_size
    while place < size:
        place += os.sendfile(copy, descriptor, place, size - place)
    return copy


def _memory_of(pid: int) -> tuple[int, int]:
    """What a process has resident now, and the most that it had; in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    kib = {line[:6]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return kib.get("VmRSS:", 0) * 1024, kib.get("VmHWM:", 0) * 1024


def _nothing() -> None:
    """Before anybody is connected."""


def _no_line(_: LogLine) -> None:
    """Before anybody is connected."""
