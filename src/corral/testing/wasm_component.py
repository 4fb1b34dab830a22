"""Components in WebAssembly text that answer HTTP requests: with "hello, world", as ``hello`` of wasm_programs does, or
with what they find when they call out or read a file; and some that do what they should not."""

from typing import Final

_COMPONENT: Final = r"""(component
  (import "wasi:io/error@0.2.0" (instance $err (export "error" (type (sub resource)))))
  (alias export $err "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $os (sub resource)))
    (alias outer 1 $error (type $e))
    (export "error" (type $e2 (eq $e)))
    (type $se (variant (case "last-operation-failed" (own $e2)) (case "closed")))
    (export "stream-error" (type $se2 (eq $se)))
    (export "[method]output-stream.blocking-write-and-flush" (func (param "self" (borrow $os)) (param "contents"
        (list u8)) (result (result (error $se2)))))))
  (alias export $streams "output-stream" (type $ostream))
  POLL
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer 1 $ostream (type $o))
    (export "output-stream" (type $ostr (eq $o)))
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type $ireq (sub resource)))
    (export "outgoing-response" (type $oresp (sub resource)))
    (export "outgoing-body" (type $obody (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    TYPES
    (type $dns0 (record (field "rcode" (option string)) (field "info-code" (option u16))))
        (export "DNS-error-payload" (type $dns (eq $dns0)))
    (type $tls0 (record (field "alert-id" (option u8)) (field "alert-message" (option string))))
        (export "TLS-alert-received-payload" (type $tls (eq $tls0)))
    (type $fs0 (record (field "field-name" (option string)) (field "field-size" (option u32))))
        (export "field-size-payload" (type $fs (eq $fs0)))
    (type $ou64 (option u64)) (type $ou32 (option u32)) (type $os (option string)) (type $ofs (option $fs))
    (type $ec0 (variant (case "DNS-timeout") (case "DNS-error" $dns) (case "destination-not-found") (case
      "destination-unavailable") (case "destination-IP-prohibited") (case "destination-IP-unroutable") (case
      "connection-refused") (case "connection-terminated") (case "connection-timeout") (case
      "connection-read-timeout") (case "connection-write-timeout") (case "connection-limit-reached") (case
      "TLS-protocol-error") (case "TLS-certificate-error") (case "TLS-alert-received" $tls) (case
      "HTTP-request-denied") (case "HTTP-request-length-required") (case "HTTP-request-body-size" $ou64) (case
      "HTTP-request-method-invalid") (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long") (case
      "HTTP-request-header-section-size" $ou32) (case "HTTP-request-header-size" $ofs) (case
      "HTTP-request-trailer-section-size" $ou32) (case "HTTP-request-trailer-size" $fs) (case
      "HTTP-response-incomplete") (case "HTTP-response-header-section-size" $ou32) (case "HTTP-response-header-size"
      $fs) (case "HTTP-response-body-size" $ou64) (case "HTTP-response-trailer-section-size" $ou32) (case
      "HTTP-response-trailer-size" $fs) (case "HTTP-response-transfer-coding" $os) (case
      "HTTP-response-content-coding" $os) (case "HTTP-response-timeout") (case "HTTP-upgrade-failed") (case
      "HTTP-protocol-error") (case "loop-detected") (case "configuration-error") (case "internal-error" $os)))
    (export "error-code" (type $ec (eq $ec0)))
    METHODS
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $oresp))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $oresp)) (result (result (own $obody)))))
    (export "[method]outgoing-body.write" (func (param "self" (borrow $obody)) (result (result (own $ostr)))))
    (export "[static]outgoing-body.finish" (func (param "this" (own $obody)) (param "trailers" (option
        (own $fields))) (result (result (error $ec)))))
    (export "[static]response-outparam.set" (func (param "param" (own $outparam)) (param "response" (result
        (own $oresp) (error $ec)))))
  ))
  (alias export $types "incoming-request" (type $ireq))
  (alias export $types "response-outparam" (type $outparam))
  IMPORTS
  (core module $libc (memory (export "memory") 2)
    (global $p (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $r i32) (local.set $r (i32.and (i32.add (global.get $p) (i32.const 15)) (i32.const -16)))
      (global.set $p (i32.add (local.get $r) (local.get 3))) (local.get $r)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $mem))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $fields-new (canon lower (func $types "[constructor]fields")))
  (core func $resp-new (canon lower (func $types "[constructor]outgoing-response")))
  (core func $resp-body (canon lower (func $types "[method]outgoing-response.body") (memory $mem)))
  (core func $body-write (canon lower (func $types "[method]outgoing-body.write") (memory $mem)))
  (core func $body-finish (canon lower (func $types "[static]outgoing-body.finish") (memory $mem) (realloc $realloc)))
  (core func $set (canon lower (func $types "[static]response-outparam.set") (memory $mem) (realloc $realloc)))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $mem)
        (realloc $realloc)))
  (core func $drop-stream (canon resource.drop $ostream))
  LOWERED
  (core module $m
    (import "l" "memory" (memory 2))
    (import "t" "fields-new" (func $fields-new (result i32)))
    (import "t" "resp-new" (func $resp-new (param i32) (result i32)))
    (import "t" "resp-body" (func $resp-body (param i32 i32)))
    (import "t" "body-write" (func $body-write (param i32 i32)))
    (import "t" "body-finish" (func $body-finish (param i32 i32 i32 i32)))
    (import "t" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "t" "write" (func $write (param i32 i32 i32 i32)))
    (import "t" "drop" (func $drop (param i32)))
    WANTED
    (global $at (mut i32) (i32.const 64)) (global $n (mut i32) (i32.const 13))
    (data (i32.const 64) "hello, world\n")
    DATA
    (func (export "handle") (param $req i32) (param $out i32)
      (local $resp i32) (local $body i32) (local $stream i32) (local $h i32)
      WORK
      (local.set $resp (call $resp-new (call $fields-new)))
      (call $resp-body (local.get $resp) (i32.const 16))
      (local.set $body (i32.load (i32.const 20)))
      (call $set (local.get $out) (i32.const 0) (local.get $resp) (i32.const 0) (i64.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0))
      (call $body-write (local.get $body) (i32.const 16))
      (local.set $stream (i32.load (i32.const 20)))
      (call $write (local.get $stream) (global.get $at) (global.get $n) (i32.const 16))
      (call $drop (local.get $stream))
      (call $body-finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 128))))
  (core instance $i (instantiate $m (with "l" (instance $libc)) (with "t" (instance
    (export "fields-new" (func $fields-new)) (export "resp-new" (func $resp-new)) (export "resp-body"
        (func $resp-body))
    (export "body-write" (func $body-write)) (export "body-finish" (func $body-finish)) (export "set" (func $set))
    (export "write" (func $write)) (export "drop" (func $drop-stream)) GIVEN))))
  (func $handle (param "request" (own $ireq)) (param "response-out" (own $outparam)) (canon lift
        (core func $i "handle")))
  (component $shim
    (import "ireq" (type $r (sub resource))) (import "outp" (type $o (sub resource)))
    (import "handle" (func $h (param "request" (own $r)) (param "response-out" (own $o))))
    (export "handle" (func $h)))
  (instance $exp (instantiate $shim (with "ireq" (type $ireq)) (with "outp" (type $outparam)) (with "handle"
        (func $handle))))
  (export "wasi:http/incoming-handler@0.2.0" (instance $exp))
)"""
_PLACES: Final = ("POLL", "TYPES", "METHODS", "IMPORTS", "LOWERED", "WANTED", "GIVEN", "DATA", "WORK")


def component(**parts: str) -> str:
    """The component with ``work`` before its answer, which is the ``$n`` bytes at ``$at``; and what ``work`` needs."""
    text = _COMPONENT
    for place in _PLACES:
        text = text.replace(f" {place}\n", f" {parts.get(place.lower(), '')}\n").replace(
            f" {place})", f" {parts.get(place.lower(), '')})"
        )
    return text


HELLO_COMPONENT: Final = component()
TRAP: Final = component(work="(unreachable)")
SPIN: Final = component(work="(loop $again (br $again))")
GROW: Final = component(
    work="""(loop $again (local.set $h (i32.add (local.get $h) (i32.const 1)))
        (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
      (global.set $at (i32.const 3000)) (global.set $n (i32.const 2))
      (i32.store8 (i32.const 3000) (i32.add (i32.const 48) (i32.div_u (local.get $h) (i32.const 10))))
      (i32.store8 (i32.const 3001) (i32.add (i32.const 48) (i32.rem_u (local.get $h) (i32.const 10))))"""
)
"""Answers with how often its memory could grow by a MiB, and once more; two digits."""
FLOOD: Final = component(work="(global.set $n (i32.const 4096))")
"""Answers with 4 KiB."""


def calling(authority: str) -> str:
    """Asks ``http://AUTHORITY/`` and answers with the status, three digits; or with "no" when there is no answer."""
    return component(
        poll="""(import "wasi:io/poll@0.2.0" (instance $pollables (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $pollables "pollable" (type $poll))
""",
        types="""(export "outgoing-request" (type $oreq (sub resource)))
    (export "request-options" (type $options (sub resource)))
    (export "incoming-response" (type $iresp (sub resource)))
    (type $scheme0 (variant (case "HTTP") (case "HTTPS") (case "other" string)))
    (export "scheme" (type $scheme (eq $scheme0)))
    (export "future-incoming-response" (type $future (sub resource)))
    (alias outer 1 $poll (type $p)) (export "pollable" (type $pollable (eq $p)))
""",
        methods="""(export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $oreq))))
    (export "[method]outgoing-request.set-authority" (func (param "self" (borrow $oreq))
      (param "authority" (option string)) (result (result))))
    (export "[method]outgoing-request.set-path-with-query" (func (param "self" (borrow $oreq))
      (param "path-with-query" (option string)) (result (result))))
    (export "[method]outgoing-request.set-scheme" (func (param "self" (borrow $oreq))
      (param "scheme" (option $scheme)) (result (result))))
    (export "[method]future-incoming-response.subscribe" (func (param "self" (borrow $future))
      (result (own $pollable))))
    (export "[method]future-incoming-response.get" (func (param "self" (borrow $future))
      (result (option (result (result (own $iresp) (error $ec)))))))
    (export "[method]incoming-response.status" (func (param "self" (borrow $iresp)) (result u16)))
""",
        imports="""(alias export $types "outgoing-request" (type $oreq))
  (alias export $types "request-options" (type $options))
  (alias export $types "future-incoming-response" (type $future))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:http/outgoing-handler@0.2.0" (instance $outgoing
    (alias outer 1 $oreq (type $r)) (export "outgoing-request" (type $request (eq $r)))
    (alias outer 1 $options (type $o)) (export "request-options" (type $opt (eq $o)))
    (alias outer 1 $future (type $f)) (export "future-incoming-response" (type $fut (eq $f)))
    (alias outer 1 $error-code (type $e)) (export "error-code" (type $err (eq $e)))
    (export "handle" (func (param "request" (own $request)) (param "options" (option (own $opt)))
      (result (result (own $fut) (error $err)))))))
""",
        lowered="""(core func $new (canon lower (func $types "[constructor]outgoing-request")))
  (core func $authority (canon lower (func $types "[method]outgoing-request.set-authority") (memory $mem)))
  (core func $path (canon lower (func $types "[method]outgoing-request.set-path-with-query") (memory $mem)))
  (core func $scheme (canon lower (func $types "[method]outgoing-request.set-scheme") (memory $mem)))
  (core func $handle (canon lower (func $outgoing "handle") (memory $mem) (realloc $realloc)))
  (core func $subscribe (canon lower (func $types "[method]future-incoming-response.subscribe")))
  (core func $get (canon lower (func $types "[method]future-incoming-response.get") (memory $mem) (realloc $realloc)))
  (core func $status (canon lower (func $types "[method]incoming-response.status")))
  (core func $block (canon lower (func $pollables "[method]pollable.block")))
  (core func $drop-poll (canon resource.drop $poll))
""",
        wanted="""(import "t" "new" (func $new (param i32) (result i32)))
    (import "t" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "t" "path" (func $path (param i32 i32 i32 i32) (result i32)))
    (import "t" "scheme" (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
    (import "t" "handle" (func $out (param i32 i32 i32 i32)))
    (import "t" "subscribe" (func $subscribe (param i32) (result i32)))
    (import "t" "get" (func $get (param i32 i32)))
    (import "t" "status" (func $status (param i32) (result i32)))
    (import "t" "block" (func $block (param i32)))
    (import "t" "drop-poll" (func $drop-poll (param i32)))
""",
        given="""(export "new" (func $new)) (export "authority" (func $authority)) (export "path" (func $path))
    (export "scheme" (func $scheme))
    (export "handle" (func $handle)) (export "subscribe" (func $subscribe)) (export "get" (func $get))
    (export "status" (func $status)) (export "block" (func $block)) (export "drop-poll" (func $drop-poll))""",
        data=f"""(data (i32.const 512) "no/{authority}")
""",
        work=f"""(local.set $h (call $new (call $fields-new)))
      (drop (call $authority (local.get $h) (i32.const 1) (i32.const 515) (i32.const {len(authority)})))
      (drop (call $path (local.get $h) (i32.const 1) (i32.const 514) (i32.const 1)))
      (drop (call $scheme (local.get $h) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))
      (global.set $at (i32.const 512)) (global.set $n (i32.const 2))
      (call $out (local.get $h) (i32.const 0) (i32.const 0) (i32.const 1024))
      (if (i32.eqz (i32.load8_u (i32.const 1024))) (then
        (local.set $h (i32.load (i32.const 1032)))
        (local.set $body (call $subscribe (local.get $h)))
        (call $block (local.get $body))
        (call $drop-poll (local.get $body))
        (call $get (local.get $h) (i32.const 1024))
        (if (i32.eqz (i32.load8_u (i32.const 1040))) (then
          (local.set $h (call $status (i32.load (i32.const 1048))))
          (global.set $n (i32.const 3))
          (i32.store8 (i32.const 512) (i32.add (i32.const 48) (i32.div_u (local.get $h) (i32.const 100))))
          (i32.store8 (i32.const 513) (i32.add (i32.const 48)
            (i32.rem_u (i32.div_u (local.get $h) (i32.const 10)) (i32.const 10))))
          (i32.store8 (i32.const 514) (i32.add (i32.const 48) (i32.rem_u (local.get $h) (i32.const 10))))))))
""",
    )


_ERRORS: Final = (
    "access would-block already bad-descriptor busy deadlock quota exist file-too-large illegal-byte-sequence "
    "in-progress interrupted invalid io is-directory loop too-many-links message-size name-too-long no-device "
    "no-entry no-lock insufficient-memory insufficient-space not-directory not-empty not-recoverable unsupported "
    "no-tty no-such-device overflow not-permitted pipe read-only invalid-seek text-file-busy cross-device"
).split()


def reading(path: str, *, create: bool = False) -> str:
    """Opens ``path`` below its first directory and answers with what is there; or with "error" and its name's number.

    ``create``: opens it for writing, and makes it.
    """
    open_flags, flags = ("1", "3") if create else ("0", "1")
    return component(
        imports=f"""(import "wasi:filesystem/types@0.2.0" (instance $fs
    (export "descriptor" (type $descriptor (sub resource)))
    (type $e0 (enum {" ".join(f'"{each}"' for each in _ERRORS)})) (export "error-code" (type $e (eq $e0)))
    (type $f0 (flags "read" "write" "file-integrity-sync" "data-integrity-sync" "requested-write-sync"
      "mutate-directory")) (export "descriptor-flags" (type $f (eq $f0)))
    (type $p0 (flags "symlink-follow")) (export "path-flags" (type $p (eq $p0)))
    (type $o0 (flags "create" "directory" "exclusive" "truncate")) (export "open-flags" (type $o (eq $o0)))
    (export "[method]descriptor.open-at" (func (param "self" (borrow $descriptor)) (param "path-flags" $p)
      (param "path" string) (param "open-flags" $o) (param "flags" $f)
      (result (result (own $descriptor) (error $e)))))
    (export "[method]descriptor.read" (func (param "self" (borrow $descriptor)) (param "length" u64)
      (param "offset" u64) (result (result (tuple (list u8) bool) (error $e)))))))
  (alias export $fs "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.0" (instance $preopens
    (alias outer 1 $descriptor (type $d)) (export "descriptor" (type $desc (eq $d)))
    (export "get-directories" (func (result (list (tuple (own $desc) string)))))))
""",
        lowered="""(core func $dirs (canon lower (func $preopens "get-directories") (memory $mem) (realloc $realloc)))
  (core func $open (canon lower (func $fs "[method]descriptor.open-at") (memory $mem)))
  (core func $read (canon lower (func $fs "[method]descriptor.read") (memory $mem) (realloc $realloc)))
""",
        wanted="""(import "t" "dirs" (func $dirs (param i32)))
    (import "t" "open" (func $open (param i32 i32 i32 i32 i32 i32 i32)))
    (import "t" "read" (func $read (param i32 i64 i64 i32)))
""",
        given="""(export "dirs" (func $dirs)) (export "open" (func $open)) (export "read" (func $read))""",
        data=f"""(data (i32.const 512) "error 00{path}")
""",
        work=f"""(global.set $at (i32.const 512)) (global.set $n (i32.const 8))
      (call $dirs (i32.const 1024))
      (call $open (i32.load (i32.load (i32.const 1024))) (i32.const 1) (i32.const 520) (i32.const {len(path)})
        (i32.const {open_flags}) (i32.const {flags}) (i32.const 1024))
      (if (i32.load8_u (i32.const 1024)) (then (local.set $h (i32.load8_u (i32.const 1028)))) (else
        (call $read (i32.load (i32.const 1028)) (i64.const 100) (i64.const 0) (i32.const 1024))
        (if (i32.load8_u (i32.const 1024)) (then (local.set $h (i32.load8_u (i32.const 1028)))) (else
          (global.set $at (i32.load (i32.const 1028))) (global.set $n (i32.load (i32.const 1032)))))))
      (i32.store8 (i32.const 518) (i32.add (i32.const 48) (i32.div_u (local.get $h) (i32.const 10))))
      (i32.store8 (i32.const 519) (i32.add (i32.const 48) (i32.rem_u (local.get $h) (i32.const 10))))
""",
    )


def error_named(name: str) -> bytes:
    """What ``reading`` answers for the error of that name."""
    return b"error %02d" % _ERRORS.index(name)
