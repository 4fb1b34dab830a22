"""Small programs in WebAssembly text for tests and benchmarks: good ones, and such as do what they should not.

``assemble`` wants the ``wasmtime`` package; a program is a WASI command unless its name says otherwise.
"""

from functools import cache
from typing import Final

import wasmtime

_IMPORTS: Final = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"""
_PRINT: Final = """
  (func $print (param $fd i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))"""
_HEAD: Final = "Content-Type: text/plain\\r\\n\\r\\n"
_HEAD_SIZE: Final = 28


def command(body: str, *, text: str = "", more: str = "", pages: int = 2) -> str:
    """A command: ``$head`` prints a head, ``$say`` the ``text`` after it; ``body`` is that of ``_start``."""
    size = len(text.encode().decode("unicode_escape"))
    return f"""(module {_IMPORTS}
  (memory (export "memory") {pages})
  (data (i32.const 1024) "{_HEAD}{text}")
  {_PRINT} {more}
  (func $head (call $print (i32.const 1) (i32.const 1024) (i32.const {_HEAD_SIZE})))
  (func $say (param $fd i32)
    (call $print (local.get $fd) (i32.const {1024 + _HEAD_SIZE}) (i32.const {size})))
  (func (export "_start") {body}))"""


def hello(text: str = "hello, world") -> str:
    """Prints ``text`` and a newline, after a head, in one write."""
    size = _HEAD_SIZE + len(text) + 1
    return command(f"(call $print (i32.const 1) (i32.const 1024) (i32.const {size}))", text=text + "\\n")


ECHO: Final = command(
    """(local $got i32) (call $head)
    (loop $more
      (i32.store (i32.const 16) (i32.const 65536)) (i32.store (i32.const 20) (i32.const 65536))
      (drop (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
      (local.set $got (i32.load (i32.const 24)))
      (if (local.get $got)
        (then (call $print (i32.const 1) (i32.const 65536) (local.get $got)) (br $more))))"""
)
"""Answers with the body, piece by piece."""

ENVIRONMENT: Final = command(
    """(call $head)
    (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $environ_get (i32.const 32768) (i32.const 65536)))
    (call $print (i32.const 1) (i32.const 65536) (i32.load (i32.const 20)))"""
)
"""Answers with its variables, a zero byte behind each."""

SPIN: Final = command("(loop $again (br $again))")
LATE: Final = command("(call $head) (call $say (i32.const 1)) (loop $again (br $again))", text="begun")
RECURSE: Final = command("(call $deep)", more="(func $deep (call $deep) (call $deep))")
TRAP: Final = command("(call $secret_name)", more="(func $secret_name (unreachable))")
EXIT_3: Final = command("(call $head) (call $proc_exit (i32.const 3))")
STDERR: Final = command("(call $say (i32.const 2)) (call $head)", text="from the log")
SILENT: Final = command("")
NO_HEADER: Final = command("(call $say (i32.const 1))", text="no header at all")
SPLITTING: Final = command(
    "(call $print (i32.const 1) (i32.const 1052) (i32.const 40))", text="X-A: b\\rSet-Cookie: c=d\\r\\n\\r\\nbody text."
)
"""A bare CR in a header's value."""

GROW: Final = command(
    "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (call $head)"
    " (i32.store8 (i32.const 32) (i32.add (i32.const 48) (i32.gt_u (memory.size) (i32.const 1024))))"
    " (call $print (i32.const 1) (i32.const 32) (i32.const 1))"
)
"""Grows until it is refused; answers 1 when it got more than 64 MiB."""

GROW_TABLE: Final = command(
    "(loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))) (call $head)"
    " (i32.store8 (i32.const 32) (i32.add (i32.const 48) (i32.gt_u (table.size $t) (i32.const 10000))))"
    " (call $print (i32.const 1) (i32.const 32) (i32.const 1))",
    more="(table $t 1 funcref)",
)
"""The same for a table of 10,000 elements."""

BIG_MEMORY: Final = command("(call $head)", pages=60_000)
BIG_TABLE: Final = command("(call $head)", more="(table 5000000 funcref)")

SLEEP: Final = command(
    """(i32.store8 (i32.const 48) (i32.const 0)) (i32.store (i32.const 56) (i32.const 1))
    (i64.store (i32.const 64) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 40) (i32.const 128) (i32.const 1) (i32.const 200))) (call $head)"""
)
"""Sleeps for an hour."""

FLOOD: Final = command(
    "(call $head) (loop $again (call $print (i32.const 1) (i32.const 0) (i32.const 65536)) (br $again))"
)
"""Answers without an end."""

LOG_FLOOD: Final = command(
    """(local $n i32) (call $head)
    (loop $again (call $print (i32.const 2) (i32.const 1024) (i32.const 1024))
      (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 2000))))"""
)
"""Writes 2 MB to stderr."""

WRONG_IMPORT: Final = '(module (import "env" "launch_missiles" (func)) (func (export "_start")))'
NO_ENTRY: Final = '(module (func (export "main")))'
START_LOOP: Final = (
    '(module (memory (export "memory") 1) (start $s) (func $s (loop $a (br $a))) (func (export "_start")))'
)
_REFUSED: Final = "(i32.const 21)) (then unreachable))"
BAD_VECTOR: Final = command(
    f"""(i32.store (i32.const 0) (i32.const -16)) (i32.store (i32.const 4) (i32.const 4096))
    (if (i32.ne (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) {_REFUSED}
    (if (i32.ne (call $fd_write (i32.const 1) (i32.const -8) (i32.const 3) (i32.const 8)) {_REFUSED}
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 8)) {_REFUSED}
    (if (i32.ne (call $environ_get (i32.const -4) (i32.const -4)) {_REFUSED}
    (call $head)"""
)
"""Gives addresses that are not in its memory, and traps when one is taken."""


def opens(path: str) -> str:
    """Opens a path below its first directory; answers with the error as two digits (00: it could)."""
    size = len(path.encode().decode("unicode_escape"))
    return command(
        f"""(local $error i32)
        (local.set $error (call $path_open (i32.const 3) (i32.const 1) (i32.const {1024 + _HEAD_SIZE})
          (i32.const {size}) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 40)))
        (call $head)
        (i32.store8 (i32.const 32) (i32.add (i32.const 48) (i32.div_u (local.get $error) (i32.const 10))))
        (i32.store8 (i32.const 33) (i32.add (i32.const 48) (i32.rem_u (local.get $error) (i32.const 10))))
        (call $print (i32.const 1) (i32.const 32) (i32.const 2))""",
        text=path,
    )


REACTOR: Final = f"""(module {_IMPORTS}
  (memory (export "memory") 2) (global $free (mut i32) (i32.const 65536))
  (data (i32.const 1024) "{_HEAD}handled")
  (func (export "corral_alloc") (param i32) (result i32)
    (global.get $free) (global.set $free (i32.add (global.get $free) (local.get 0))))
  (func (export "handle") (param i32 i32 i32 i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 35))))"""
REACTOR_WILD: Final = REACTOR.replace("(i64.const 35)", "(i64.const 4000000000)")


def wide(functions: int, steps: int = 200) -> str:
    """A command with so many functions of so many steps: time for the compiler, and memory where steps are many."""
    step = "(local.set $x (i64.mul (i64.add (local.get $x) (i64.const 7)) (i64.rotl (local.get $x) (i64.const 3))))"
    one = "(func (param $x i64) (result i64) " + step * steps + " (local.get $x))"
    return command("(call $head)", more=one * functions)


@cache
def assemble(text: str) -> bytes:
    """The binary form of a module or component."""
    return bytes(wasmtime.wat2wasm(text))
