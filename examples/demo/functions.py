"""Part three: a WebAssembly function: deploy it, call it by URL, put a second revision beside it, switch, go back."""

import json
from pathlib import Path

import wasmtime

from demo.shell import corral, say, show

PROGRAM = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "Content-Type: text/plain\\r\\n\\r\\n%s\\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const %d))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
"""A WASI program that prints one answer; in real life your compiler makes it: `clang --target=wasm32-wasi hello.c`."""
_HEAD_BYTES = len("Content-Type: text/plain\r\n\r\n\n")


def show_functions(home: Path) -> None:
    """Compile two revisions and let them follow each other."""
    say("8. A WebAssembly function: deploy it and call it by its URL")
    for name, text in (("hello-1", "hello from the first revision"), ("hello-2", "hello from the second")):
        (home / f"{name}.wasm").write_bytes(wasmtime.wat2wasm(PROGRAM % (text, _HEAD_BYTES + len(text))))
    corral("fn", "deploy", "hello", "hello-1.wasm", "--revision", "v1", cwd=home)
    (url, *_) = json.loads(corral("fn", "show", "hello", "--json", cwd=home, quiet=True))["urls"]
    show("curl", "-sS", "--fail", url, cwd=home)

    say("9. A second revision beside it; then all requests go there, and back again")
    corral("fn", "deploy", "hello", "hello-2.wasm", "--revision", "v2", cwd=home)
    corral("fn", "switch", "hello", "v2", cwd=home)
    corral("fn", "call", "hello", cwd=home)
    corral("fn", "rollback", "hello", cwd=home)
    corral("fn", "call", "hello", cwd=home)
    corral("fn", "split", "hello", "v1=95", "v2=5", cwd=home)
    corral("fn", "show", "hello", cwd=home)
