/* Compiling, in a process of its own with limits of time and memory: a module comes in on standard input, machine
 * code leaves on standard output, and what is wrong is one line "code: text" on standard error with status 1. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host.h"

enum { MODULE_MAX = 256 * 1024 * 1024 };

static int wrong(const char *code, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int wrong(const char *code, const char *format, ...) {
  va_list arguments;
  fprintf(stderr, "%s: ", code);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  return 1;
}

static uint8_t *read_all(size_t *size) {
  size_t room = 1 << 16;
  uint8_t *bytes = malloc(room);
  for (*size = 0; bytes != NULL;) {
    ssize_t got = read(STDIN_FILENO, bytes + *size, room - *size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got == 0 ? bytes : NULL;
    *size += (size_t)got;
    if (*size > MODULE_MAX) return NULL;
    if (*size == room) bytes = realloc(bytes, room *= 2);
  }
  return NULL;
}

static bool write_all(const uint8_t *bytes, size_t size) {
  while (size > 0) {
    ssize_t wrote = write(STDOUT_FILENO, bytes, size);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    bytes += wrote, size -= (size_t)wrote;
  }
  return true;
}

static int check_head(const uint8_t *bytes, size_t size) {
  static const uint8_t magic[4] = {0, 'a', 's', 'm'};
  if (size < 4 || memcmp(bytes, magic, 4) != 0)
    return wrong("not-wasm", "this is not WebAssembly: it does not begin with \"\\0asm\"");
  if (size < 8) return wrong("truncated", "the module ends within its first 8 bytes");
  if (get32(bytes + 4) == 0x1000d)
    return wrong("wrong-kind", "this is a component, and a core module is expected; deploy it as http-component");
  if (get32(bytes + 4) != 1) return wrong("invalid-module", "the module has version %u, not 1", get32(bytes + 4));
  return 0;
}

static int check_imports(const wasmtime_module_t *module) {
  wasm_importtype_vec_t imports;
  int status = 0;
  wasmtime_module_imports(module, &imports);
  for (size_t n = 0; n < imports.size && status == 0; n++) {
    const wasm_byte_vec_t *from = wasm_importtype_module(imports.data[n]), *name = wasm_importtype_name(imports.data[n]);
    bool function = wasm_externtype_kind(wasm_importtype_type(imports.data[n])) == WASM_EXTERN_IS_FUNC;
    if (function && wasi_has((const char *)from->data, from->size, (const char *)name->data, name->size)) continue;
    status = wrong("unknown-import", "the module imports \"%.*s\" \"%.*s\", which is not there; available are the "
                   "functions of \"wasi_snapshot_preview1\": %s",
                   (int)(from->size > 200 ? 200 : from->size), (const char *)from->data,
                   (int)(name->size > 200 ? 200 : name->size), (const char *)name->data, wasi_names());
  }
  wasm_importtype_vec_delete(&imports);
  return status;
}

static bool is_type(const wasm_exporttype_t *export, const char *parameters, const char *results) {
  const wasm_functype_t *type = wasm_externtype_as_functype_const(wasm_exporttype_type(export));
  const wasm_valtype_vec_t *lists[2] = {wasm_functype_params(type), wasm_functype_results(type)};
  const char *wanted[2] = {parameters, results};
  for (int side = 0; side < 2; side++) {
    if (lists[side]->size != strlen(wanted[side])) return false;
    for (size_t n = 0; n < lists[side]->size; n++)
      if (wasm_valtype_kind(lists[side]->data[n]) != (wanted[side][n] == 'I' ? WASM_KIND_I64 : WASM_KIND_I32))
        return false;
  }
  return true;
}

/* 0 when `name` is exported with this type, else a complaint that says what there should be. */
static int check_export(const wasm_exporttype_vec_t *exports, const char *name, const char *parameters,
                        const char *results, const char *shown, const char *hint) {
  for (size_t n = 0; n < exports->size; n++) {
    const wasm_byte_vec_t *each = wasm_exporttype_name(exports->data[n]);
    if (each->size != strlen(name) || memcmp(each->data, name, each->size) != 0) continue;
    bool function = wasm_externtype_kind(wasm_exporttype_type(exports->data[n])) == WASM_EXTERN_IS_FUNC;
    if (function && is_type(exports->data[n], parameters, results)) return 0;
    return wrong("no-entry", "the export \"%s\" is not a function %s", name, shown);
  }
  return wrong("no-entry", "the module exports no function \"%s\" %s%s", name, shown, hint);
}

static bool exports_memory(const wasm_exporttype_vec_t *exports) {
  for (size_t n = 0; n < exports->size; n++) {
    const wasm_byte_vec_t *each = wasm_exporttype_name(exports->data[n]);
    if (each->size == 6 && memcmp(each->data, "memory", 6) == 0) return true;
  }
  return false;
}

static int check_exports(const wasmtime_module_t *module, const char *handler) {
  wasm_exporttype_vec_t exports;
  int status;
  wasmtime_module_exports(module, &exports);
  if (handler == NULL) {
    status = check_export(&exports, "_start", "", "", "() -> ()",
                          "; a command has one, a reactor is deployed with the name of its handler");
  } else {
    status = check_export(&exports, handler, "iiii", "I", "(i32 i32 i32 i32) -> i64", "");
    if (status == 0) status = check_export(&exports, "corral_alloc", "i", "i", "(i32) -> i32", "");
    if (status == 0 && !exports_memory(&exports)) status = wrong("no-entry", "the module exports no \"memory\"");
  }
  wasm_exporttype_vec_delete(&exports);
  return status;
}

/* Whether the module can be made within its memory and tables: says so at deployment, not at the first request. */
static int check_limits(wasm_engine_t *with, const wasmtime_module_t *module) {
  wasmtime_linker_t *into = wasmtime_linker_new(with);
  wasmtime_instance_pre_t *pre = NULL;
  define_wasi(into);
  wasmtime_error_t *error = wasmtime_linker_instantiate_pre(into, module, &pre);
  if (error != NULL) return wrong("unknown-import", "%s", error_text(error));
  return 0;
}

int compile_main(const struct options *limits) {
  const char *handler = getenv("CORRAL_HANDLER");
  size_t size;
  uint8_t *bytes = read_all(&size);
  if (bytes == NULL) return wrong("too-large", "the module is larger than %d MiB, or cannot be read", MODULE_MAX >> 20);
  int status = check_head(bytes, size);
  if (status != 0) return status;
  wasm_engine_t *with = make_engine(limits, false);
  wasmtime_module_t *module = NULL;
  wasmtime_error_t *error = wasmtime_module_new(with, bytes, size, &module);
  if (error != NULL) {
    char *text = error_text(error);
    bool cut = strstr(text, "unexpected end") != NULL || strstr(text, "unexpected EOF") != NULL;
    for (char *each = text; *each; each++)
      if (*each == '\n') *each = ' ';
    return wrong(cut ? "truncated" : "invalid-module", "%s", text);
  }
  if ((status = check_imports(module)) != 0 || (status = check_exports(module, handler)) != 0) return status;
  if ((status = check_limits(with, module)) != 0) return status;
  wasm_byte_vec_t code;
  error = wasmtime_module_serialize(module, &code);
  if (error != NULL) return wrong("invalid-module", "%s", error_text(error));
  return write_all(code.data, code.size) ? 0 : wrong("engine-lost", "nobody reads the compiled code");
}
