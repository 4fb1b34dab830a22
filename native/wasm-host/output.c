/* What a call writes: its answer, within the window that the front gave, and its log, which is cut at a size. */
#include <stdlib.h>
#include <string.h>

#include "call.h"

static bool window_take(struct call *call, uint32_t size) {
  bool ok = true;
  pthread_mutex_lock(&call->lock);
  while (ok && call->window < size) ok = gate_wait(call, call->deadline_ns);
  if (ok) call->window -= size;
  pthread_mutex_unlock(&call->lock);
  if (!ok) call->verdict = call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL;
  return ok;
}

/* The buffer has room for a frame's header in front and for the end's frame behind. */
bool out_flush(struct call *call, bool last) {
  if (call->out_size == 0) return true;
  if (!window_take(call, call->out_size)) return false;
  if (last) return true; /* finish() sends it together with the end */
  uint32_t size = call->out_size;
  call->out_size = 0;
  return send_frame(call->from, FRAME_OUT, 0, call->stream, call->out + FRAME_HEADER, size);
}

bool out_write(struct call *call, const uint8_t *bytes, size_t size) {
  if (size > call->program->response_max - call->out_total) {
    call->verdict = OUTCOME_OUTPUT;
    return false;
  }
  call->out_total += size;
  if (call->out_size == 0) call->out_since_ns = now_ns();
  while (size > 0) {
    size_t some = OUT_ROOM - call->out_size < size ? OUT_ROOM - call->out_size : size;
    memcpy(call->out + FRAME_HEADER + call->out_size, bytes, some);
    call->out_size += (uint32_t)some, bytes += some, size -= some;
    if (call->out_size == OUT_ROOM && !out_flush(call, false)) return false;
  }
  return true;
}

void log_send(const struct call *call, uint8_t stream, const uint8_t *text, uint32_t size) {
  uint32_t key = (uint32_t)strlen(call->program->key), id = (uint32_t)strlen(call->request_id);
  uint8_t *frame = malloc(9 + key + id + size);
  if (frame == NULL) return;
  frame[0] = stream;
  put32(frame + 1, key), memcpy(frame + 5, call->program->key, key);
  put32(frame + 5 + key, id), memcpy(frame + 9 + key, call->request_id, id);
  memcpy(frame + 9 + key + id, text, size);
  send_control(FRAME_LOG, frame, 9 + key + id + size, true);
  free(frame);
}

void log_flush(struct call *call) {
  if (call->log_size) log_send(call, 0, call->log, call->log_size);
  call->log_size = 0;
}

void log_write(struct call *call, const uint8_t *bytes, size_t size) {
  uint64_t left = call->program->log_max - call->log_total;
  if (size > left) size = left;
  call->log_total += size;
  while (size > 0) {
    if (call->log == NULL && (call->log = malloc(LOG_ROOM)) == NULL) return;
    size_t some = LOG_ROOM - call->log_size < size ? LOG_ROOM - call->log_size : size;
    memcpy(call->log + call->log_size, bytes, some);
    call->log_size += (uint32_t)some, bytes += some, size -= some;
    if (call->log_size == LOG_ROOM) log_flush(call);
  }
}
