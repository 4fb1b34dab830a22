/* Reactors: programs with an exported handler that gets the request in its memory and gives the answer from there. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

/* A reactor's answer, or an end because it named bytes that it does not have. */
static enum outcome reactor_answer(struct call *call, wasmtime_context_t *context, uint64_t where) {
  static const char why[] = "the handler gave an address and a size that are not in its memory";
  uint64_t address = where >> 32, size = where & UINT32_MAX;
  uint64_t held = wasmtime_memory_data_size(context, &call->memory);
  if (address > held || size > held - address) {
    log_send(call, 1, (const uint8_t *)why, sizeof why - 1);
    return OUTCOME_TRAP;
  }
  return out_write(call, wasmtime_memory_data(context, &call->memory) + address, size) ? OUTCOME_OK : call->verdict;
}

/* Puts bytes where the guest's allocator says. */
static enum outcome reactor_put(struct call *call, wasmtime_context_t *context, wasmtime_func_t *allocate,
                                const uint8_t *bytes, uint32_t size, uint32_t *where) {
  static const char why[] = "corral_alloc gave an address that is not in its memory";
  wasmtime_val_raw_t value[1] = {{.i32 = (int32_t)size}};
  enum outcome outcome = enter_guest(call, context, allocate, value, 1);
  if (outcome != OUTCOME_OK) return outcome;
  *where = (uint32_t)value[0].i32;
  uint64_t held = wasmtime_memory_data_size(context, &call->memory);
  if (*where > held || size > held - *where) {
    log_send(call, 1, (const uint8_t *)why, sizeof why - 1);
    return OUTCOME_TRAP;
  }
  if (size) memcpy(wasmtime_memory_data(context, &call->memory) + *where, bytes, size);
  return OUTCOME_OK;
}

/* The whole body of a reactor's request, which is never larger than its memory. */
static enum outcome reactor_body(struct call *call, uint8_t **body, uint32_t *size) {
  size_t room = 0;
  enum outcome outcome = OUTCOME_OK;
  pthread_mutex_lock(&call->lock);
  while (outcome == OUTCOME_OK && (call->body != NULL || !call->body_ended)) {
    struct chunk *chunk = call->body;
    if (chunk == NULL) {
      if (!gate_wait(call, call->deadline_ns)) outcome = call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL;
      continue;
    }
    uint32_t some = chunk->size - chunk->used;
    if (*size + (uint64_t)some > call->program->memory_max) {
      outcome = OUTCOME_MEMORY;
      break;
    }
    if (*size + some > room) {
      room = (*size + some) * 2;
      uint8_t *grown = realloc(*body, room);
      if (grown == NULL) abort();
      *body = grown;
    }
    memcpy(*body + *size, chunk->bytes + chunk->used, some);
    *size += some;
    call->body = chunk->next;
    if (call->body == NULL) call->body_tail = NULL;
    call->body_held -= some, call->body_credit += some;
    free(chunk);
    uint32_t credit = call->body_credit >= WINDOW / 2 && !call->body_ended ? call->body_credit : 0;
    if (credit) {
      uint8_t more[4];
      put32(more, credit);
      call->body_credit = 0;
      send_frame(call->from, FRAME_CREDIT, 0, call->stream, more, sizeof more);
    }
  }
  pthread_mutex_unlock(&call->lock);
  return outcome;
}

enum outcome run_reactor(struct call *call, wasmtime_context_t *context, wasmtime_instance_t *instance) {
  wasmtime_func_t function, allocate;
  enum outcome outcome = OUTCOME_OK;
  uint8_t *body = NULL;
  uint32_t body_size = 0, variables_at = 0, body_at = 0;
  if (find_function(context, instance, "_initialize", &function)) {
    wasmtime_val_raw_t none[1] = {{0}};
    outcome = enter_guest(call, context, &function, none, 0);
  }
  if (outcome == OUTCOME_OK && (!find_function(context, instance, "corral_alloc", &allocate) ||
                                !find_function(context, instance, call->program->handler, &function) ||
                                !call->has_memory))
    outcome = OUTCOME_BROKEN;
  if (outcome == OUTCOME_OK) outcome = reactor_body(call, &body, &body_size);
  if (outcome == OUTCOME_OK)
    outcome = reactor_put(call, context, &allocate, (const uint8_t *)call->variables, call->variables_size,
                          &variables_at);
  if (outcome == OUTCOME_OK) outcome = reactor_put(call, context, &allocate, body, body_size, &body_at);
  free(body);
  if (outcome == OUTCOME_OK) {
    wasmtime_val_raw_t values[4] = {{.i32 = (int32_t)variables_at}, {.i32 = (int32_t)call->variables_size},
                                    {.i32 = (int32_t)body_at}, {.i32 = (int32_t)body_size}};
    outcome = enter_guest(call, context, &function, values, 4);
    if (outcome == OUTCOME_OK && !call->exited)
      outcome = reactor_answer(call, context, (uint64_t)values[0].i64);
  }
  return outcome;
}
