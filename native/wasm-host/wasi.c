/* WASI preview 1 for functions: standard streams that are the request, the answer and the log; variables, clocks,
 * random numbers; and files below pre-opened directories. No sockets, no processes, no signals.
 *
 * It is our own and small because a guest that waits must still end at its deadline, and the engine cannot interrupt
 * a host call: whatever waits here waits on the call's condition, until the deadline. Every guest address is checked
 * against the memory as it is at this moment. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "wasi.h"

/* -- arguments and variables -- */

static uint16_t strings_put(struct guest *guest, unsigned count, char *const *strings, const char *more,
                            unsigned more_count) {
  uint32_t table = arg32(guest, 0), bytes = arg32(guest, 1);
  for (unsigned n = 0; n < count + more_count; n++) {
    const char *each = n < count ? strings[n] : more;
    uint32_t size = (uint32_t)strlen(each) + 1;
    uint8_t *to = at(guest, bytes, size);
    if (to == NULL || put_u32(guest, table + 4 * n, bytes) != E_OK) return E_FAULT;
    memcpy(to, each, size);
    bytes += size;
    if (n >= count) more += size;
  }
  return E_OK;
}

static uint16_t args_get(struct guest *guest) {
  return strings_put(guest, guest->call->program->argc, guest->call->program->argv, NULL, 0);
}

static uint16_t args_sizes_get(struct guest *guest) {
  const struct program *program = guest->call->program;
  uint32_t total = 0;
  for (unsigned n = 0; n < program->argc; n++) total += (uint32_t)strlen(program->argv[n]) + 1;
  return put_u32(guest, arg32(guest, 0), program->argc) | put_u32(guest, arg32(guest, 1), total);
}

static uint16_t environ_get(struct guest *guest) {
  const struct call *call = guest->call;
  return strings_put(guest, call->program->envc, call->program->envv, call->variables, call->variable_count);
}

static uint16_t environ_sizes_get(struct guest *guest) {
  const struct call *call = guest->call;
  uint32_t total = call->variables_size;
  for (unsigned n = 0; n < call->program->envc; n++) total += (uint32_t)strlen(call->program->envv[n]) + 1;
  return put_u32(guest, arg32(guest, 0), call->program->envc + call->variable_count) |
         put_u32(guest, arg32(guest, 1), total);
}

/* -- clocks and random numbers -- */

static bool clock_of(uint32_t id, clockid_t *clock) {
  static const clockid_t known[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID,
                                    CLOCK_THREAD_CPUTIME_ID};
  if (id >= sizeof known / sizeof *known) return false;
  *clock = known[id];
  return true;
}

static uint16_t clock_put(struct guest *guest, struct timespec time, int n) {
  uint8_t *to = at(guest, arg32(guest, n), 8);
  if (to == NULL) return E_FAULT;
  put64(to, (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec);
  return E_OK;
}

static uint16_t clock_res_get(struct guest *guest) {
  clockid_t clock;
  struct timespec time;
  if (!clock_of(arg32(guest, 0), &clock) || clock_getres(clock, &time) != 0) return E_INVAL;
  return clock_put(guest, time, 1);
}

static uint16_t clock_time_get(struct guest *guest) {
  clockid_t clock;
  struct timespec time;
  if (!clock_of(arg32(guest, 0), &clock) || clock_gettime(clock, &time) != 0) return E_INVAL;
  return clock_put(guest, time, 2);
}

static uint16_t random_get(struct guest *guest) {
  uint32_t size = arg32(guest, 1);
  uint8_t *to = at(guest, arg32(guest, 0), size);
  if (to == NULL) return E_FAULT;
  for (uint32_t done = 0; done < size;) {
    uint32_t some = size - done > 65536 ? 65536 : size - done; /* between two looks at the deadline */
    if (now_ns() > guest->call->deadline_ns) {
      guest->trap = stop_guest(guest->call, OUTCOME_WALL);
      return E_OK;
    }
    ssize_t got = getrandom(to + done, some, 0);
    if (got < 0) return E_IO;
    done += (uint32_t)got;
  }
  return E_OK;
}

/* -- standard streams -- */

/* Waits until there are bytes of the body, or its end. Called with the lock held. */
static bool body_wait(struct call *call) {
  while (call->body == NULL && !call->body_ended)
    if (!gate_wait(call, call->deadline_ns)) return false;
  return true;
}

static uint32_t body_take(struct call *call, uint8_t *to, uint32_t room) {
  uint32_t done = 0;
  while (done < room && call->body != NULL) {
    struct chunk *chunk = call->body;
    uint32_t some = chunk->size - chunk->used < room - done ? chunk->size - chunk->used : room - done;
    memcpy(to + done, chunk->bytes + chunk->used, some);
    chunk->used += some, done += some;
    if (chunk->used == chunk->size) {
      call->body = chunk->next;
      if (call->body == NULL) call->body_tail = NULL;
      free(chunk);
    }
  }
  call->body_held -= done;
  call->body_credit += done;
  return done;
}

static uint16_t stdin_read(struct guest *guest, uint8_t *to, uint32_t room, uint32_t *done) {
  struct call *call = guest->call;
  if (room != 0 && call->body == NULL && !call->body_ended && !out_flush(call, false)) {
    guest->trap = stop_guest(call, call->verdict ? call->verdict : OUTCOME_CANCELED);
    return E_OK;
  }
  pthread_mutex_lock(&call->lock);
  bool there = room == 0 || body_wait(call);
  *done = there ? body_take(call, to, room) : 0;
  uint32_t credit = call->body_credit >= WINDOW / 2 && !call->body_ended ? call->body_credit : 0;
  if (credit) call->body_credit = 0;
  pthread_mutex_unlock(&call->lock);
  if (!there) {
    guest->trap = stop_guest(call, call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL);
    return E_OK;
  }
  uint8_t more[4];
  put32(more, credit);
  if (credit) send_frame(call->from, FRAME_CREDIT, 0, call->stream, more, sizeof more);
  return E_OK;
}

static uint16_t one_write(struct guest *guest, struct descriptor *to, const uint8_t *bytes, uint32_t size,
                          int64_t offset, uint32_t *done) {
  struct call *call = guest->call;
  *done = size;
  switch (to->kind) {
    case FD_STDOUT:
      if (call->program->kind == PROGRAM_REACTOR)
        log_write(call, bytes, size);
      else if (!out_write(call, bytes, size))
        guest->trap = stop_guest(call, call->verdict ? call->verdict : OUTCOME_CANCELED);
      return E_OK;
    case FD_STDERR:
      log_write(call, bytes, size);
      return E_OK;
    case FD_FILE: {
      if (!to->writable) return E_BADF;
      ssize_t wrote = offset < 0 ? write(to->fd, bytes, size) : pwrite(to->fd, bytes, size, offset);
      if (wrote < 0) return errno_to_wasi(errno);
      *done = (uint32_t)wrote;
      return E_OK;
    }
    default:
      return E_BADF;
  }
}

static uint16_t one_read(struct guest *guest, struct descriptor *from, uint8_t *to, uint32_t room, int64_t offset,
                         uint32_t *done) {
  if (from->kind == FD_STDIN) return stdin_read(guest, to, room, done);
  if (from->kind != FD_FILE) return E_BADF;
  ssize_t got = offset < 0 ? read(from->fd, to, room) : pread(from->fd, to, room, offset);
  if (got < 0) return errno_to_wasi(errno);
  *done = (uint32_t)got;
  return E_OK;
}

/* All of fd_read, fd_write, fd_pread, fd_pwrite: the vectors one after the other, until one is not done in full. */
static uint16_t vectors(struct guest *guest, bool writing, int64_t offset, int result) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint32_t count = arg32(guest, 2), total = 0;
  const uint8_t *table = at(guest, arg32(guest, 1), (uint64_t)count * 8);
  if (of == NULL) return E_BADF;
  if (offset >= 0 && of->kind != FD_FILE) return E_SPIPE;
  if (table == NULL) return E_FAULT;
  if (count > IOVECS_MAX) return E_INVAL;
  for (uint32_t n = 0; n < count; n++) {
    uint32_t size = get32(table + 8 * n + 4), done = 0;
    uint8_t *bytes = at(guest, get32(table + 8 * n), size);
    if (bytes == NULL) return E_FAULT;
    if (size > UINT32_MAX - total) return E_INVAL;
    if (size == 0) continue;
    int64_t place = offset < 0 ? -1 : offset + total;
    uint16_t error = writing ? one_write(guest, of, bytes, size, place, &done)
                             : one_read(guest, of, bytes, size, place, &done);
    if (guest->trap != NULL) return E_OK;
    if (error != E_OK) return total ? put_u32(guest, arg32(guest, result), total) : error;
    total += done;
    if (done < size || (!writing && of->kind == FD_STDIN)) break; /* a stream gives what there is */
  }
  return put_u32(guest, arg32(guest, result), total);
}

static uint16_t fd_read(struct guest *guest) { return vectors(guest, false, -1, 3); }
static uint16_t fd_write(struct guest *guest) { return vectors(guest, true, -1, 3); }

static uint16_t fd_pread(struct guest *guest) {
  return arg64(guest, 3) > INT64_MAX ? E_INVAL : vectors(guest, false, (int64_t)arg64(guest, 3), 4);
}

static uint16_t fd_pwrite(struct guest *guest) {
  return arg64(guest, 3) > INT64_MAX ? E_INVAL : vectors(guest, true, (int64_t)arg64(guest, 3), 4);
}

static uint16_t not_supported(struct guest *guest) { return E_NOTSUP; }
static uint16_t no_such_socket(struct guest *guest) { return E_BADF; }

/* -- waiting and leaving -- */

static uint64_t wake_at(struct guest *guest, const uint8_t *subscription) {
  struct timespec now;
  clockid_t clock;
  uint64_t wanted = get64(subscription + 24), mono = now_ns();
  if (!clock_of(get32(subscription + 16), &clock)) return mono;
  if (!(subscription[40] & 1)) return wanted > UINT64_MAX - mono ? UINT64_MAX : mono + wanted;
  clock_gettime(clock, &now);
  uint64_t here = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
  uint64_t left = wanted > here ? wanted - here : 0;
  return left > UINT64_MAX - mono ? UINT64_MAX : mono + left;
}

static void event_put(uint8_t *to, const uint8_t *subscription, uint16_t error, uint64_t bytes) {
  memset(to, 0, 32);
  memcpy(to, subscription, 8);
  to[8] = (uint8_t)error;
  to[10] = subscription[8];
  put64(to + 16, bytes);
}

static uint32_t poll_ready(struct guest *guest, const uint8_t *in, uint8_t *out, uint32_t count) {
  struct call *call = guest->call;
  uint32_t ready = 0;
  for (uint32_t n = 0; n < count; n++) {
    const uint8_t *each = in + 48 * n;
    if (each[8] == 0) {
      if (wake_at(guest, each) <= now_ns()) event_put(out + 32 * ready++, each, E_OK, 0);
      continue;
    }
    struct descriptor *of = descriptor_of(guest, get32(each + 16));
    if (of == NULL)
      event_put(out + 32 * ready++, each, E_BADF, 0);
    else if (of->kind != FD_STDIN || each[8] == 2 || call->body != NULL || call->body_ended)
      event_put(out + 32 * ready++, each, E_OK, of->kind == FD_STDIN ? call->body_held : 0);
  }
  return ready;
}

static uint16_t poll_oneoff(struct guest *guest) {
  struct call *call = guest->call;
  uint32_t count = arg32(guest, 2);
  uint8_t *in = at(guest, arg32(guest, 0), (uint64_t)count * 48), *out = at(guest, arg32(guest, 1), (uint64_t)count * 32);
  if (count == 0 || count > POLL_MAX) return E_INVAL;
  if (in == NULL || out == NULL) return E_FAULT;
  uint8_t wanted[48 * POLL_MAX]; /* a copy: the guest may have let both overlap */
  memcpy(wanted, in, (size_t)count * 48);
  uint64_t until = UINT64_MAX;
  for (uint32_t n = 0; n < count; n++) {
    uint8_t *each = wanted + 48 * n;
    if (each[8] != 0) continue;
    uint64_t when = wake_at(guest, each);
    if (when < until) until = when;
    put32(each + 16, 1), put64(each + 24, when), each[40] = 1; /* absolute and monotonic from now on */
  }
  if (!out_flush(call, false)) {
    guest->trap = stop_guest(call, call->verdict ? call->verdict : OUTCOME_CANCELED);
    return E_OK;
  }
  uint32_t ready;
  pthread_mutex_lock(&call->lock);
  while ((ready = poll_ready(guest, wanted, out, count)) == 0) {
    uint64_t limit = until < call->deadline_ns ? until : call->deadline_ns;
    if (!gate_wait(call, limit) && (call->cancelled || limit == call->deadline_ns)) break;
  }
  pthread_mutex_unlock(&call->lock);
  if (ready == 0) {
    guest->trap = stop_guest(call, call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL);
    return E_OK;
  }
  return put_u32(guest, arg32(guest, 3), ready);
}

static uint16_t proc_exit(struct guest *guest) {
  guest->call->exited = true;
  guest->call->exit_code = arg32(guest, 0);
  guest->trap = stop_guest(guest->call, OUTCOME_OK);
  return E_OK;
}

static uint16_t sched_yield_(struct guest *guest) { return E_OK; }

/* -- the table -- */

struct entry {
  const char *name, *parameters; /* i: i32, I: i64 */
  bool gives;
  uint16_t (*run)(struct guest *guest);
};

static const struct entry entries[] = {
    {"args_get", "ii", true, args_get},
    {"args_sizes_get", "ii", true, args_sizes_get},
    {"clock_res_get", "ii", true, clock_res_get},
    {"clock_time_get", "iIi", true, clock_time_get},
    {"environ_get", "ii", true, environ_get},
    {"environ_sizes_get", "ii", true, environ_sizes_get},
    {"fd_advise", "iIIi", true, fd_advise},
    {"fd_allocate", "iII", true, not_supported},
    {"fd_close", "i", true, fd_close},
    {"fd_datasync", "i", true, fd_sync},
    {"fd_fdstat_get", "ii", true, fd_fdstat_get},
    {"fd_fdstat_set_flags", "ii", true, fd_fdstat_set_flags},
    {"fd_fdstat_set_rights", "iII", true, fd_fdstat_set_rights},
    {"fd_filestat_get", "ii", true, fd_filestat_get},
    {"fd_filestat_set_size", "iI", true, fd_filestat_set_size},
    {"fd_filestat_set_times", "iIIi", true, not_supported},
    {"fd_pread", "iiiIi", true, fd_pread},
    {"fd_prestat_dir_name", "iii", true, fd_prestat_dir_name},
    {"fd_prestat_get", "ii", true, fd_prestat_get},
    {"fd_pwrite", "iiiIi", true, fd_pwrite},
    {"fd_read", "iiii", true, fd_read},
    {"fd_readdir", "iiiIi", true, fd_readdir},
    {"fd_renumber", "ii", true, fd_renumber},
    {"fd_seek", "iIii", true, fd_seek},
    {"fd_sync", "i", true, fd_sync},
    {"fd_tell", "ii", true, fd_tell},
    {"fd_write", "iiii", true, fd_write},
    {"path_create_directory", "iii", true, path_create_directory},
    {"path_filestat_get", "iiiii", true, path_filestat_get},
    {"path_filestat_set_times", "iiiiIIi", true, not_supported},
    {"path_link", "iiiiiii", true, not_supported},
    {"path_open", "iiiiiIIii", true, path_open},
    {"path_readlink", "iiiiii", true, path_readlink},
    {"path_remove_directory", "iii", true, path_remove_directory},
    {"path_rename", "iiiiii", true, path_rename},
    {"path_symlink", "iiiii", true, not_supported},
    {"path_unlink_file", "iii", true, path_unlink_file},
    {"poll_oneoff", "iiii", true, poll_oneoff},
    {"proc_exit", "i", false, proc_exit},
    {"proc_raise", "i", true, not_supported},
    {"random_get", "ii", true, random_get},
    {"sched_yield", "", true, sched_yield_},
    {"sock_accept", "iii", true, no_such_socket},
    {"sock_recv", "iiiiii", true, no_such_socket},
    {"sock_send", "iiiii", true, no_such_socket},
    {"sock_shutdown", "ii", true, no_such_socket},
};
enum { ENTRIES = sizeof entries / sizeof *entries };

static const char module_name[] = "wasi_snapshot_preview1";

static wasm_trap_t *enter(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  const struct entry *entry = env;
  wasmtime_context_t *context = wasmtime_caller_context(caller);
  struct guest guest = {.call = wasmtime_context_get_data(context), .caller = caller, .values = values};
  wasmtime_memory_t memory = guest.call->memory;
  if (!guest.call->has_memory) { /* a start function calls before the instance is known */
    wasmtime_extern_t exported;
    if (!wasmtime_caller_export_get(caller, "memory", 6, &exported) || exported.kind != WASMTIME_IS_MEMORY) {
      static const char why[] = "the module exports no memory";
      return wasmtime_trap_new(why, sizeof why - 1);
    }
    memory = exported.of.memory;
  }
  guest.memory = wasmtime_memory_data(context, &memory);
  guest.size = wasmtime_memory_data_size(context, &memory);
  uint16_t error = entry->run(&guest);
  if (guest.trap != NULL) return guest.trap;
  if (entry->gives) values[0].i32 = error;
  return NULL;
}

static wasm_functype_t *type_of(const struct entry *entry) {
  wasm_valtype_t *kinds[16];
  wasm_valtype_vec_t parameters, results;
  size_t count = strlen(entry->parameters);
  for (size_t n = 0; n < count; n++)
    kinds[n] = wasm_valtype_new(entry->parameters[n] == 'I' ? WASM_KIND_I64 : WASM_KIND_I32);
  wasm_valtype_vec_new(&parameters, count, kinds);
  wasm_valtype_t *result = entry->gives ? wasm_valtype_new(WASM_KIND_I32) : NULL;
  wasm_valtype_vec_new(&results, entry->gives ? 1 : 0, &result);
  return wasm_functype_new(&parameters, &results);
}

void define_wasi(wasmtime_linker_t *into) {
  for (int n = 0; n < ENTRIES; n++) {
    wasm_functype_t *type = type_of(&entries[n]);
    wasmtime_error_t *error =
        wasmtime_linker_define_func_unchecked(into, module_name, sizeof module_name - 1, entries[n].name,
                                              strlen(entries[n].name), type, enter, (void *)&entries[n], NULL);
    wasm_functype_delete(type);
    if (error != NULL) {
      fprintf(stderr, "corral-wasm-host: %s\n", error_text(error));
      exit(70);
    }
  }
}

const char *wasi_names(void) {
  static char names[2048];
  if (names[0] == 0)
    for (int n = 0; n < ENTRIES; n++) {
      if (n) strcat(names, " ");
      strcat(names, entries[n].name);
    }
  return names;
}

bool wasi_has(const char *module, size_t module_size, const char *name, size_t name_size) {
  if (module_size != sizeof module_name - 1 || memcmp(module, module_name, module_size) != 0) return false;
  for (int n = 0; n < ENTRIES; n++)
    if (strlen(entries[n].name) == name_size && memcmp(entries[n].name, name, name_size) == 0) return true;
  return false;
}

void wasi_begin(struct call *call) {
  call->descriptors[0].kind = FD_STDIN;
  call->descriptors[1].kind = FD_STDOUT;
  call->descriptors[2].kind = FD_STDERR;
  for (unsigned n = 0; n < call->program->preopen_count; n++) {
    const struct preopen *each = &call->program->preopens[n];
    call->descriptors[3 + n] =
        (struct descriptor){.kind = FD_PREOPEN, .fd = each->fd, .writable = each->writable, .preopen = n};
  }
}

void wasi_end(struct call *call) {
  for (unsigned n = 0; n < DESCRIPTORS_MAX; n++) {
    struct descriptor *each = &call->descriptors[n];
    if (each->kind == FD_FILE || each->kind == FD_DIRECTORY) close(each->fd);
    each->kind = FD_FREE;
  }
}
