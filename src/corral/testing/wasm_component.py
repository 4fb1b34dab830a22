"""A component in WebAssembly text that answers HTTP requests with "hello, world", as `hello` of wasm_programs does."""

from typing import Final

HELLO_COMPONENT: Final = r"""(component
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
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer 1 $ostream (type $o))
    (export "output-stream" (type $ostr (eq $o)))
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type $ireq (sub resource)))
    (export "outgoing-response" (type $oresp (sub resource)))
    (export "outgoing-body" (type $obody (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
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
    (data (i32.const 64) "hello, world\n")
    (func (export "handle") (param $req i32) (param $out i32)
      (local $resp i32) (local $body i32) (local $stream i32)
      (local.set $resp (call $resp-new (call $fields-new)))
      (call $resp-body (local.get $resp) (i32.const 16))
      (local.set $body (i32.load (i32.const 20)))
      (call $set (local.get $out) (i32.const 0) (local.get $resp) (i32.const 0) (i64.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0))
      (call $body-write (local.get $body) (i32.const 16))
      (local.set $stream (i32.load (i32.const 20)))
      (call $write (local.get $stream) (i32.const 64) (i32.const 13) (i32.const 16))
      (call $drop (local.get $stream))
      (call $body-finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 128))))
  (core instance $i (instantiate $m (with "l" (instance $libc)) (with "t" (instance
    (export "fields-new" (func $fields-new)) (export "resp-new" (func $resp-new)) (export "resp-body"
        (func $resp-body))
    (export "body-write" (func $body-write)) (export "body-finish" (func $body-finish)) (export "set" (func $set))
    (export "write" (func $write)) (export "drop" (func $drop-stream))))))
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
