"""The system calls that no sandbox may make, as a raw BPF program (no libseccomp).

A second wall: namespaces, dropped capabilities and "no new user namespaces" already forbid most of these; the filter
keeps kernel code that untrusted programs have no use for out of their reach. Everything not named here is allowed.

The rules, in the order in which the program tests them:

* a foreign instruction set (i386 on x86-64) and the x32 table kill the process: their numbers mean other calls;
* ``clone3`` answers ENOSYS, because a filter cannot look behind its pointer; libc falls back to ``clone``;
* ``clone`` with any flag that makes a namespace answers EPERM;
* ``personality`` may only ask and set what changes nothing about safety;
* ``ioctl`` may not push characters into a terminal (TIOCSTI, TIOCLINUX);
* ``socket`` makes unix, IPv4, IPv6 and netlink sockets only: others (vsock, packet, AF_ALG, …) are not all
  confined by a network namespace, and answer EAFNOSUPPORT;
* the calls of ``DENIED`` answer EPERM.

Numbers: Linux uapi ``asm/unistd_64.h`` and ``asm-generic/unistd.h``; program format: ``linux/filter.h``.
"""

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

from corral.kernel.errors import SandboxFailed

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_OFFSET_NUMBER: Final = 0  # of struct seccomp_data
_OFFSET_ARCHITECTURE: Final = 4
_OFFSET_ARGUMENTS: Final = 16  # eight bytes each, little endian: the low word comes first

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000

NAMESPACE_FLAGS: Final = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
X32_BIT: Final = 0x40000000
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)  # Linux, Linux 32, fixed layout, "ask"
SOCKET_FAMILIES: Final = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink

# name: (x86-64, arm64); None where the architecture has no such call
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "setns": (308, 268),
    "unshare": (272, 97),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the filter must know about an instruction set; ``audit`` is its AUDIT_ARCH number."""

    audit: int
    column: int
    x32: bool
    clone: int
    clone3: int
    personality: int
    ioctl: int
    socket: int
    socketpair: int


ARCHITECTURES: Final = {
    "x86_64": Architecture(
        audit=0xC000003E,
        column=0,
        x32=True,
        clone=56,
        clone3=435,
        personality=135,
        ioctl=16,
        socket=41,
        socketpair=53,
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        column=1,
        x32=False,
        clone=220,
        clone3=435,
        personality=92,
        ioctl=29,
        socket=198,
        socketpair=199,
    ),
}


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One ``struct sock_filter``; the jumps count instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _answer(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def _on_call(number: int, body: bytes) -> bytes:
    """``body`` runs for this call only; it must return. The accumulator holds the number before and after."""
    return _instruction(_JUMP_EQUAL, number, 0, len(body) // 8) + body


def _argument(index: int) -> bytes:
    return _instruction(_LOAD_WORD, _OFFSET_ARGUMENTS + 8 * index)


def _one_of(argument: int, values: tuple[int, ...], *, found: int, otherwise: int) -> bytes:
    """Return ``found`` when the argument's low word is one of ``values``."""
    tests = b"".join(
        _instruction(_JUMP_EQUAL, value, len(values) - position, 0) for position, value in enumerate(values)
    )
    return _argument(argument) + tests + _instruction(_RETURN, otherwise) + _instruction(_RETURN, found)


def program(machine: str | None = None) -> bytes:
    """The filter for an instruction set as ``platform.machine()`` names it (default: this one).

    Raises:
        SandboxFailed: no filter is known for it.
    """
    machine = machine or platform.machine()
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise SandboxFailed(
            f"no system-call filter is known for {machine} processors; Corral runs on {' and '.join(ARCHITECTURES)}",
            machine=machine,
        )
    eperm = _ERRNO | errno.EPERM
    no_family = _ERRNO | errno.EAFNOSUPPORT
    parts = [
        _instruction(_LOAD_WORD, _OFFSET_ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture.audit, 1, 0),
        _instruction(_RETURN, KILL_PROCESS),
        _instruction(_LOAD_WORD, _OFFSET_NUMBER),
    ]
    if architecture.x32:
        parts += [_instruction(_JUMP_AT_LEAST, X32_BIT, 0, 1), _instruction(_RETURN, KILL_PROCESS)]
    families = _one_of(0, SOCKET_FAMILIES, found=ALLOW, otherwise=no_family)
    parts += [
        _on_call(architecture.clone3, _answer(errno.ENOSYS)),
        _on_call(
            architecture.clone,
            _argument(0)
            + _instruction(_JUMP_ANY_BIT, NAMESPACE_FLAGS, 0, 1)
            + _answer(errno.EPERM)
            + _instruction(_RETURN, ALLOW),
        ),
        _on_call(architecture.personality, _one_of(0, PERSONALITIES, found=ALLOW, otherwise=eperm)),
        _on_call(architecture.ioctl, _one_of(1, (TIOCSTI, TIOCLINUX), found=eperm, otherwise=ALLOW)),
        _on_call(architecture.socket, families),
        _on_call(architecture.socketpair, families),
    ]
    denied = [numbers[architecture.column] for numbers in DENIED.values()]
    parts += [_on_call(number, _answer(errno.EPERM)) for number in denied if number is not None]
    parts.append(_instruction(_RETURN, ALLOW))
    return b"".join(parts)
