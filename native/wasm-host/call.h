/* What the parts of a call share. */
#ifndef CORRAL_WASM_HOST_CALL_H
#define CORRAL_WASM_HOST_CALL_H

#include "host.h"

enum { OUT_ROOM = 32 * 1024, LOG_ROOM = 16 * 1024 };

/* call.c: into the guest and back; what it came to */
enum outcome enter_guest(struct call *call, wasmtime_context_t *context, wasmtime_func_t *entry,
                         wasmtime_val_raw_t *values, size_t count);
bool find_function(wasmtime_context_t *context, wasmtime_instance_t *instance, const char *name,
                   wasmtime_func_t *function);

/* reactor.c */
enum outcome run_reactor(struct call *call, wasmtime_context_t *context, wasmtime_instance_t *instance);

/* output.c */
void log_send(const struct call *call, uint8_t stream, const uint8_t *text, uint32_t size); /* stream 1: the host's */
void log_flush(struct call *call);

#endif
