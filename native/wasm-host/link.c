/* The frames: what fronts and the worker say to this host. One thread, which never runs guest code and never waits
 * for anybody but the next frame.
 *
 * Fronts come over a listening stream socket. The worker has one SOCK_SEQPACKET connection, a message a frame, with
 * descriptors beside a program. When the worker goes, the host goes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

enum { CONNECTIONS_MAX = 256, STREAMS_MAX = 65536, TELL_EVERY_MS = 250, BUCKETS = 256 };
#define IDLE_CODE_NS (60ull * 1000000000)

struct connection {
  int fd;
  atomic_uint users;
  atomic_bool dead;
  pthread_mutex_t writing;
  struct call *calls[BUCKETS]; /* by stream; the main thread only, as all that follows */
  unsigned call_count;
  uint8_t *in;
  size_t in_size, in_room;
};

struct reader {
  const uint8_t *at, *end;
  bool bad;
};

static int control_fd, epoll_fd;
static struct program *programs;
static struct code *codes;
static unsigned connections;

/* -- writing -- */

void connection_unref(struct connection *connection) {
  if (atomic_fetch_sub(&connection->users, 1) != 1) return;
  close(connection->fd);
  pthread_mutex_destroy(&connection->writing);
  free(connection->in);
  free(connection);
}

/* A front that does not read for SO_SNDTIMEO is given up. */
bool send_raw(struct connection *to, const void *bytes, size_t size) {
  const uint8_t *from = bytes;
  pthread_mutex_lock(&to->writing);
  while (size > 0 && !to->dead) {
    ssize_t wrote = send(to->fd, from, size, MSG_NOSIGNAL);
    if (wrote > 0) {
      from += wrote, size -= (size_t)wrote;
    } else if (errno != EINTR) {
      to->dead = true;
      shutdown(to->fd, SHUT_RDWR);
    }
  }
  pthread_mutex_unlock(&to->writing);
  return size == 0;
}

bool send_frame(struct connection *to, uint8_t kind, uint8_t flags, uint32_t stream, const void *payload,
                uint32_t size) {
  uint8_t small[FRAME_HEADER + 64], *frame = size <= 64 ? small : malloc(FRAME_HEADER + size);
  if (frame == NULL) abort();
  put32(frame, size);
  frame[4] = kind, frame[5] = flags, frame[6] = frame[7] = 0;
  put32(frame + 8, stream);
  if (size) memcpy(frame + FRAME_HEADER, payload, size);
  bool ok = send_raw(to, frame, FRAME_HEADER + size);
  if (frame != small) free(frame);
  return ok;
}

/* To the worker. A log line is dropped when the worker reads too slowly; nothing waits for a log. */
void send_control(uint8_t kind, const void *payload, uint32_t size, bool may_drop) {
  uint8_t head[FRAME_HEADER] = {0};
  put32(head, size);
  head[4] = kind;
  struct iovec parts[2] = {{head, sizeof head}, {(void *)payload, size}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
  while (sendmsg(control_fd, &message, MSG_NOSIGNAL | (may_drop ? MSG_DONTWAIT : 0)) < 0 && errno == EINTR) continue;
}

static void send_end(struct connection *to, uint32_t stream, enum outcome outcome) {
  uint8_t end[40] = {0};
  end[0] = (uint8_t)outcome;
  send_frame(to, FRAME_END, FLAG_LAST, stream, end, sizeof end);
}

/* -- reading -- */

static uint32_t read32(struct reader *from) {
  if (from->end - from->at < 4) return from->bad = true, 0;
  from->at += 4;
  return get32(from->at - 4);
}

static uint64_t read64(struct reader *from) {
  uint64_t low = read32(from);
  return low | (uint64_t)read32(from) << 32;
}

static uint8_t read8(struct reader *from) {
  if (from->at == from->end) return from->bad = true, 0;
  return *from->at++;
}

/* A new C string; "" when the frame is bad. */
static char *read_text(struct reader *from) {
  uint32_t size = read32(from);
  if ((size_t)(from->end - from->at) < size || memchr(from->at, 0, size) != NULL) from->bad = true, size = 0;
  char *text = malloc(size + 1);
  if (text == NULL) abort();
  memcpy(text, from->at, size);
  text[size] = 0;
  from->at += size;
  return text;
}

static char **read_texts(struct reader *from, unsigned *count) {
  uint32_t wanted = read32(from);
  if (wanted > 4096) from->bad = true, wanted = 0;
  char **texts = calloc(wanted + 1, sizeof *texts);
  if (texts == NULL) abort();
  for (*count = 0; *count < wanted; (*count)++) texts[*count] = read_text(from);
  return texts;
}

/* -- programs -- */

static struct program *program_named(const char *key, size_t size) {
  for (struct program *each = programs; each != NULL; each = each->next)
    if (strlen(each->key) == size && memcmp(each->key, key, size) == 0) return each;
  return NULL;
}

static void free_texts(char **texts, unsigned count) {
  for (unsigned n = 0; n < count; n++) free(texts[n]);
  free(texts);
}

static pthread_mutex_t codes_lock = PTHREAD_MUTEX_INITIALIZER;

static void code_unref(struct code *code) {
  pthread_mutex_lock(&codes_lock);
  bool last = --code->users == 0;
  if (last) {
    struct code **place = &codes;
    while (*place != code) place = &(*place)->next;
    *place = code->next;
  }
  pthread_mutex_unlock(&codes_lock);
  if (last) free_code(code);
}

void program_unref(struct program *program) {
  if (atomic_fetch_sub(&program->users, 1) != 1) return;
  if (program->code != NULL) code_unref(program->code);
  for (unsigned n = 0; n < program->preopen_count; n++) {
    if (program->preopens[n].fd >= 0) close(program->preopens[n].fd);
    free(program->preopens[n].guest);
  }
  free_texts(program->argv, program->argc);
  free_texts(program->envv, program->envc);
  free(program->handler);
  free(program->key);
  pthread_mutex_destroy(&program->lock);
  free(program);
}

/* Takes the descriptor. */
static struct code *code_keyed(char *key, int fd) {
  pthread_mutex_lock(&codes_lock);
  struct code *code = codes;
  while (code != NULL && strcmp(code->key, key) != 0) code = code->next;
  if (code != NULL) {
    close(fd);
    free(key);
  } else {
    code = calloc(1, sizeof *code);
    if (code == NULL) abort();
    code->key = key, code->fd = fd;
    pthread_mutex_init(&code->lock, NULL);
    code->next = codes, codes = code;
  }
  code->users++;
  pthread_mutex_unlock(&codes_lock);
  return code;
}

/* Takes the descriptors that it names. */
static bool load_program(struct reader from, int *descriptors, int count) {
  struct program *program = calloc(1, sizeof *program);
  if (program == NULL) abort();
  pthread_mutex_init(&program->lock, NULL);
  program->users = 1;
  program->kind = read8(&from) == PROGRAM_REACTOR ? PROGRAM_REACTOR : PROGRAM_COMMAND;
  unsigned preopen_count = read8(&from);
  program->memory_max = read64(&from), program->table_elements = read64(&from), program->fuel = read64(&from);
  program->response_max = read64(&from), program->log_max = read64(&from), program->cpu_ns = read64(&from);
  program->key = read_text(&from);
  char *code_key = read_text(&from);
  program->handler = read_text(&from);
  program->argv = read_texts(&from, &program->argc);
  program->envv = read_texts(&from, &program->envc);
  bool fits = preopen_count <= PREOPENS_MAX && count == (int)preopen_count + 1;
  for (unsigned n = 0; fits && !from.bad && n < preopen_count; n++) {
    bool writable = read8(&from) != 0;
    program->preopens[n] = (struct preopen){.fd = descriptors[n + 1], .writable = writable, .guest = read_text(&from)};
    descriptors[n + 1] = -1;
    program->preopen_count = n + 1;
  }
  bool known = program_named(program->key, strlen(program->key)) != NULL;
  if (!fits || from.bad || known) {
    free(code_key);
    program_unref(program);
    return known;
  }
  program->code = code_keyed(code_key, descriptors[0]);
  descriptors[0] = -1;
  program->next = programs, programs = program;
  return true;
}

static void unload_program(const char *key, size_t size) {
  for (struct program **place = &programs; *place != NULL; place = &(*place)->next) {
    struct program *each = *place;
    if (strlen(each->key) != size || memcmp(each->key, key, size) != 0) continue;
    *place = each->next;
    program_unref(each);
    return;
  }
}

static void control_message(const uint8_t *bytes, size_t size, int *descriptors, int count) {
  if (size < FRAME_HEADER) return;
  struct reader from = {.at = bytes + FRAME_HEADER, .end = bytes + size};
  if (bytes[4] == FRAME_LOAD) {
    uint8_t ok = load_program(from, descriptors, count);
    send_control(FRAME_LOADED, &ok, 1, false);
  } else if (bytes[4] == FRAME_UNLOAD) {
    unload_program((const char *)from.at, (size_t)(from.end - from.at));
  }
}

static bool read_control(void) {
  static uint8_t bytes[FRAME_PAYLOAD_MAX];
  union { struct cmsghdr head; uint8_t room[CMSG_SPACE(sizeof(int) * (PREOPENS_MAX + 1))]; } beside;
  struct iovec part = {bytes, sizeof bytes};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &beside, .msg_controllen = sizeof beside};
  ssize_t size = recvmsg(control_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) return false;
  int descriptors[PREOPENS_MAX + 1], count = 0;
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
    count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(descriptors, CMSG_DATA(head), (size_t)count * sizeof(int));
  }
  control_message(bytes, (size_t)size, descriptors, count);
  for (int n = 0; n < count; n++)
    if (descriptors[n] >= 0) close(descriptors[n]);
  return true;
}

/* -- calls -- */

static struct call **place_of(struct connection *connection, uint32_t stream) {
  struct call **place = &connection->calls[stream % BUCKETS];
  while (*place != NULL && (*place)->stream != stream) place = &(*place)->next;
  return place;
}

static bool well_formed(const char *variables, uint32_t size, uint32_t count) {
  uint32_t ends = 0;
  for (uint32_t n = 0; n < size; n++) ends += variables[n] == 0;
  return ends == count && (size == 0 || variables[size - 1] == 0);
}

static void forget_finished(struct connection *connection) {
  for (unsigned n = 0; n < BUCKETS; n++) {
    struct call **place = &connection->calls[n];
    while (*place != NULL) {
      struct call *call = *place;
      if (call->users > 1) {
        place = &call->next;
        continue;
      }
      *place = call->next;
      connection->call_count--;
      call_unref(call);
    }
  }
}

static struct call *new_call(struct connection *connection, uint32_t stream, struct program *program, bool no_body) {
  struct call *call = calloc(1, sizeof *call);
  if (call == NULL) abort();
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&call->changed, &attributes);
  pthread_condattr_destroy(&attributes);
  pthread_mutex_init(&call->lock, NULL);
  call->from = connection;
  atomic_fetch_add(&connection->users, 1);
  call->program = program;
  atomic_fetch_add(&program->users, 1);
  call->users = 1;
  call->stream = stream;
  call->window = WINDOW;
  call->body_ended = no_body;
  call->received_ns = now_ns();
  return call;
}

static bool begin_call(struct connection *connection, uint32_t stream, bool no_body, struct reader from) {
  uint32_t wall_ms = read32(&from), key_size = read32(&from);
  if (from.bad || (size_t)(from.end - from.at) < key_size) return false;
  struct program *program = program_named((const char *)from.at, key_size);
  from.at += key_size;
  uint32_t variable_count = read32(&from);
  uint32_t size = (uint32_t)(from.end - from.at);
  if (from.bad || !well_formed((const char *)from.at, size, variable_count)) return false;
  if (*place_of(connection, stream) != NULL) return false;
  if (program == NULL) {
    send_end(connection, stream, OUTCOME_UNKNOWN);
    return true;
  }
  struct call *call = new_call(connection, stream, program, no_body);
  call->deadline_ns = call->received_ns + (uint64_t)wall_ms * 1000000;
  call->variables = malloc(size + 1);
  if (call->variables == NULL) abort();
  memcpy(call->variables, from.at, size);
  call->variables[size] = 0;
  call->variables_size = size, call->variable_count = variable_count;
  call->request_id = "";
  static const char prefix[] = "HTTP_X_REQUEST_ID=";
  for (const char *each = call->variables; each < call->variables + size; each += strlen(each) + 1)
    if (strncmp(each, prefix, sizeof prefix - 1) == 0) call->request_id = each + sizeof prefix - 1;
  pthread_mutex_lock(&program->lock);
  program->counters.in_flight++, program->counters.changed = true;
  pthread_mutex_unlock(&program->lock);
  if (connection->call_count > 0 && connection->call_count % 1024 == 0) forget_finished(connection);
  call->next = connection->calls[stream % BUCKETS];
  connection->calls[stream % BUCKETS] = call;
  connection->call_count++;
  if (connection->call_count > STREAMS_MAX || !enqueue(call)) {
    pthread_mutex_lock(&program->lock);
    program->counters.in_flight--, program->counters.refused++;
    pthread_mutex_unlock(&program->lock);
    send_end(connection, stream, OUTCOME_BUSY);
  }
  return true;
}

/* False when the front sent more than it may. */
static bool add_body(struct call *call, const uint8_t *bytes, uint32_t size, bool last) {
  struct chunk *chunk = NULL;
  if (size) {
    chunk = malloc(sizeof *chunk + size);
    if (chunk == NULL) abort();
    *chunk = (struct chunk){.size = size};
    memcpy(chunk->bytes, bytes, size);
  }
  pthread_mutex_lock(&call->lock);
  bool ok = !call->body_ended && size <= WINDOW - call->body_held;
  if (ok) {
    if (chunk != NULL) {
      *(call->body == NULL ? &call->body : &call->body_tail->next) = chunk;
      call->body_tail = chunk;
      call->body_held += size;
    }
    call->body_ended = last;
    pthread_cond_signal(&call->changed);
  }
  pthread_mutex_unlock(&call->lock);
  if (!ok) free(chunk);
  return ok;
}

static void cancel(struct call *call) {
  pthread_mutex_lock(&call->lock);
  call->cancelled = true;
  pthread_cond_signal(&call->changed);
  pthread_mutex_unlock(&call->lock);
}

static bool credit(struct call *call, struct reader from) {
  uint32_t more = read32(&from);
  pthread_mutex_lock(&call->lock);
  bool ok = !from.bad && more <= WINDOW - call->window;
  if (ok) call->window += more;
  pthread_cond_signal(&call->changed);
  pthread_mutex_unlock(&call->lock);
  return ok;
}

static bool one_frame(struct connection *connection, const uint8_t *frame, uint32_t size) {
  uint32_t stream = get32(frame + 8);
  bool last = frame[5] & FLAG_LAST, ok = true;
  struct reader from = {.at = frame + FRAME_HEADER, .end = frame + FRAME_HEADER + size};
  struct call **place = place_of(connection, stream), *call = *place;
  if (call != NULL && call->users == 1) { /* it has ended */
    *place = call->next;
    connection->call_count--;
    call_unref(call);
    call = NULL;
  }
  if (frame[4] == FRAME_CALL) return begin_call(connection, stream, last, from);
  if (call == NULL) return frame[4] >= FRAME_BODY && frame[4] <= FRAME_CREDIT;
  switch (frame[4]) {
    case FRAME_BODY: ok = add_body(call, from.at, size, last); break;
    case FRAME_CANCEL: cancel(call); break;
    case FRAME_CREDIT: ok = credit(call, from); break;
    default: ok = false;
  }
  return ok;
}

/* -- connections -- */

static void drop(struct connection *connection) {
  epoll_ctl(epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
  connection->dead = true;
  shutdown(connection->fd, SHUT_RDWR);
  for (unsigned n = 0; n < BUCKETS; n++)
    while (connection->calls[n] != NULL) {
      struct call *call = connection->calls[n];
      connection->calls[n] = call->next;
      cancel(call);
      call_unref(call);
    }
  connections--;
  connection_unref(connection);
}

static bool read_frames(struct connection *connection) {
  if (connection->in_room - connection->in_size < 65536) {
    size_t room = connection->in_room + 65536;
    uint8_t *grown = realloc(connection->in, room);
    if (grown == NULL) abort();
    connection->in = grown, connection->in_room = room;
  }
  ssize_t got = recv(connection->fd, connection->in + connection->in_size, connection->in_room - connection->in_size,
                     MSG_DONTWAIT);
  if (got <= 0) return got < 0 && (errno == EAGAIN || errno == EINTR);
  connection->in_size += (size_t)got;
  size_t done = 0;
  while (connection->in_size - done >= FRAME_HEADER) {
    uint32_t size = get32(connection->in + done);
    if (size > FRAME_PAYLOAD_MAX) return false;
    if (connection->in_size - done < FRAME_HEADER + size) break;
    if (!one_frame(connection, connection->in + done, size)) return false;
    done += FRAME_HEADER + size;
  }
  memmove(connection->in, connection->in + done, connection->in_size - done);
  connection->in_size -= done;
  return !connection->dead;
}

static void accept_front(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0) return;
  struct connection *connection = calloc(1, sizeof *connection);
  if (connection == NULL || connections >= CONNECTIONS_MAX) {
    close(fd);
    free(connection);
    return;
  }
  struct timeval patience = {.tv_sec = 10};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  connection->fd = fd, connection->users = 1;
  pthread_mutex_init(&connection->writing, NULL);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
  connections++;
}

/* -- what is told -- */

static uint64_t percentile(const struct counters *of, double part) {
  uint64_t total = 0, wanted, seen = 0;
  for (int n = 0; n < LATENCY_BUCKETS; n++) total += of->latency[n];
  wanted = (uint64_t)((double)total * part);
  for (unsigned n = 0; n < LATENCY_BUCKETS; n++) {
    seen += of->latency[n];
    if (seen > wanted) return (uint64_t)(250.0 * (4 + n % 4 + 0.5) * (double)(1ull << (n / 4 + 2)) / 4);
  }
  return 0;
}

static void tell_one(struct program *program) {
  pthread_mutex_lock(&program->lock);
  struct counters now = program->counters;
  program->counters.changed = false;
  pthread_mutex_unlock(&program->lock);
  if (!now.changed) return;
  uint64_t values[] = {now.requests, now.errors, now.traps, now.timeouts, now.refused, now.in_flight, now.cpu_ns,
                       now.wall_ns, now.instantiate_ns, now.memory_peak, percentile(&now, 0.5),
                       percentile(&now, 0.99)};
  uint8_t frame[sizeof values + 256];
  size_t key = strlen(program->key);
  if (key > 256) return;
  for (size_t n = 0; n < sizeof values / sizeof *values; n++) put64(frame + 8 * n, values[n]);
  memcpy(frame + sizeof values, program->key, key);
  send_control(FRAME_STATS, frame, (uint32_t)(sizeof values + key), false);
}

static void tell(void) {
  expire_queued();
  for (struct program *each = programs; each != NULL; each = each->next) tell_one(each);
  uint64_t now = now_ns();
  pthread_mutex_lock(&codes_lock);
  for (struct code *each = codes; each != NULL; each = each->next)
    if (now > IDLE_CODE_NS) unload_idle_code(each, now - IDLE_CODE_NS);
  pthread_mutex_unlock(&codes_lock);
}

void serve(int control, int listener) {
  struct epoll_event events[64];
  uint64_t told = now_ns(), used_before = 0;
  control_fd = control;
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event from_control = {.events = EPOLLIN, .data.ptr = &control_fd};
  struct epoll_event from_fronts = {.events = EPOLLIN, .data.ptr = &epoll_fd};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, control, &from_control);
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &from_fronts);
  for (;;) {
    int count = epoll_wait(epoll_fd, events, 64, programs == NULL ? 5000 : TELL_EVERY_MS);
    for (int n = 0; n < count; n++) {
      void *what = events[n].data.ptr;
      if (what == &control_fd) {
        if (!read_control()) _exit(0);
      } else if (what == &epoll_fd) {
        accept_front(listener);
      } else if (!read_frames(what)) {
        drop(what);
      }
    }
    uint64_t now = now_ns();
    if (now - told >= TELL_EVERY_MS * 1000000ull) {
      struct timespec cpu;
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
      uint64_t used = (uint64_t)cpu.tv_sec * 1000000000ull + (uint64_t)cpu.tv_nsec;
      used_lately((double)(used - used_before) / (double)(now - told));
      used_before = used;
      told = now;
      tell();
    }
  }
}
