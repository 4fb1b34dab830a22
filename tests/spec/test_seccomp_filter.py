"""The system-call filter, run by a small interpreter of classic BPF: what it answers to each call."""

import errno
import re
import struct
from pathlib import Path

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes import seccomp

ALLOW = seccomp.ALLOW
KILL = seccomp.KILL_PROCESS


def refusal(error: int) -> int:
    return 0x00050000 | error


def verdict(program: bytes, *, number: int, audit: int, arguments: tuple[int, ...] = ()) -> int:
    """Run the filter on one call as the kernel would (linux/filter.h)."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    call = struct.pack("<IIQ6Q", number, audit, 0, *padded)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, k = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", call, k)
        elif code == 0x06:
            return int(k)
        else:
            hit = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            position += if_true if hit else if_false


@pytest.fixture(params=sorted(seccomp.ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(machine: str, number: int, *arguments: int) -> int:
    architecture = seccomp.ARCHITECTURES[machine]
    return verdict(seccomp.program(machine), number=number, audit=architecture.audit, arguments=arguments)


def test_every_denied_call_is_refused_with_eperm(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine].column

    answers = {name: ask(machine, numbers[column] or 0) for name, numbers in seccomp.DENIED.items() if numbers[column]}

    assert set(answers.values()) == {refusal(errno.EPERM)}
    assert len(answers) > 40


def test_a_program_reads_writes_and_exits_freely(machine: str) -> None:
    ordinary = {"x86_64": (0, 1, 60, 231, 59, 257), "aarch64": (63, 64, 93, 94, 221, 56)}[machine]

    assert {ask(machine, number) for number in ordinary} == {ALLOW}


def test_clone3_does_not_exist_so_that_libc_falls_back_to_clone(machine: str) -> None:
    assert ask(machine, 435) == refusal(errno.ENOSYS)


def test_clone_makes_threads_and_processes_but_no_namespace(machine: str) -> None:
    clone = seccomp.ARCHITECTURES[machine].clone

    assert ask(machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert ask(machine, clone, 0x1200011) == ALLOW  # a fork
    for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask(machine, clone, 0x11 | flag) == refusal(errno.EPERM), hex(flag)


def test_sockets_are_of_known_families_only(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]

    for call in (architecture.socket, architecture.socketpair):
        assert {family for family in range(50) if ask(machine, call, family) == ALLOW} == {1, 2, 10, 16}
    assert ask(machine, architecture.socket, 40) == refusal(errno.EAFNOSUPPORT)  # vsock


def test_nobody_types_into_a_terminal_for_somebody_else(machine: str) -> None:
    ioctl = seccomp.ARCHITECTURES[machine].ioctl

    assert ask(machine, ioctl, 0, seccomp.TIOCSTI) == refusal(errno.EPERM)
    assert ask(machine, ioctl, 0, seccomp.TIOCLINUX) == refusal(errno.EPERM)
    assert ask(machine, ioctl, 0, 0xDEADBEEF00000000 | seccomp.TIOCSTI) == refusal(errno.EPERM)  # high word is ignored
    assert ask(machine, ioctl, 0, 0x5413) == ALLOW  # TIOCGWINSZ


def test_personality_may_be_asked_but_not_weakened(machine: str) -> None:
    personality = seccomp.ARCHITECTURES[machine].personality

    assert ask(machine, personality, 0xFFFFFFFF) == ALLOW
    assert ask(machine, personality, 0x0400000) == refusal(errno.EPERM)  # READ_IMPLIES_EXEC


def test_a_foreign_instruction_set_kills_the_process(machine: str) -> None:
    assert verdict(seccomp.program(machine), number=0, audit=0x40000003) == KILL  # i386


def test_the_x32_table_kills_the_process() -> None:
    assert ask("x86_64", seccomp.X32_BIT | 1) == KILL


def test_an_unknown_processor_is_refused_by_name() -> None:
    with pytest.raises(SandboxFailed, match="riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_the_numbers_are_those_of_the_kernel_headers(header: str, column: int) -> None:
    path = Path(header)
    if not path.exists():
        pytest.skip(f"{header} is not installed (Debian: linux-libc-dev)")
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text())}

    ours = {name: numbers[column] for name, numbers in seccomp.DENIED.items() if numbers[column] is not None}
    architecture = list(seccomp.ARCHITECTURES.values())[column]
    ours |= {name: getattr(architecture, name) for name in ("clone", "personality", "ioctl", "socket", "socketpair")}

    assert {name: number for name, number in ours.items() if known.get(name, number) != number} == {}
    assert len(set(ours) & set(known)) > 40
