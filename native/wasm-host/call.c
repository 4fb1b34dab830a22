/* One call, from the queue to its end, on one thread: fresh store, fresh instance, entry point, answer.
 *
 * The gate lets `options.running` of the calls use a processor at once, in turns of one tick, so that a tenant's
 * endless loops cost its own calls their time and nobody else's. A call that waits (for its body, for the reader of
 * its answer, for a clock) has left the gate. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "call.h"

enum { SLOW_AFTER_NS = 10 * 1000 * 1000, NICE = 10 };
enum { SLICE_NS = 100 * 1000, LONG_SLICE_NS = 100 * 1000 * 1000 }; /* the shortest and the longest that there are */
#define FLUSH_AFTER_NS (20ull * 1000 * 1000)

/* A call that has left the gate and wants back in. */
struct waiter {
  struct waiter *next;
  pthread_cond_t granted_now;
  bool granted;
};

/* A thread without a call. */
struct thread {
  struct thread *next;
  pthread_cond_t called;
  struct call *call;
};

/* One lock for all that decides who runs next; never held while anything waits. */
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static struct waiter *waiters, **waiters_end = &waiters;
static struct call *queue, **queue_end = &queue;
static struct thread *idle; /* the one that was busy last comes first: its memory is still in the caches */
static atomic_uint wanting; /* waiters and queued calls */
static unsigned gate_free, queued, threads;
static uint64_t memory_used; /* promised to the calls that run */
static bool waiter_first;

/* Short requests of quiet neighbours go first: a call that computes for long, and every call of a host that computes
 * a lot, runs
 * - at a lower priority,
 * - in long slices: since Linux 6.12 whoever wakes with a shorter slice does not wait for the end of a longer one, and
 * - on as many processors as there are places at the gate, always the same: calls that take turns would else wake on the
 *   others, too, where somebody is about to wake who then waits for theirs to end. */
enum pace { BRISK, SLOW };
static const struct { int nice; uint64_t slice_ns; } paces[] = {{0, SLICE_NS}, {NICE, LONG_SLICE_NS}};
static cpu_set_t processors[2];
static _Thread_local enum pace pace = SLOW + 1;
static atomic_bool much_computed;

static void run_at(enum pace wanted) {
  struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t slice, deadline, period; }
      attributes = {.size = 48, .nice = paces[wanted].nice, .slice = paces[wanted].slice_ns};
  if (pace == wanted) return;
  pace = wanted;
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) setpriority(PRIO_PROCESS, 0, paces[wanted].nice);
  sched_setaffinity(0, sizeof *processors, &processors[wanted]);
}

static void choose_processors(void) {
  if (sched_getaffinity(0, sizeof *processors, &processors[BRISK]) != 0) return;
  processors[SLOW] = processors[BRISK];
  unsigned left = (unsigned)CPU_COUNT(&processors[BRISK]);
  for (int each = 0; each < CPU_SETSIZE && left > options.running; each++) {
    left -= CPU_ISSET(each, &processors[SLOW]) != 0;
    CPU_CLR(each, &processors[SLOW]);
  }
}

/* What the whole host used of one processor lately. */
void used_lately(double part) {
  much_computed = part > 0.25;
  run_at(much_computed ? SLOW : BRISK); /* it is the main thread that asks */
}

static struct timespec when(uint64_t ns) {
  if (ns > (uint64_t)INT64_MAX) ns = (uint64_t)INT64_MAX;
  return (struct timespec){.tv_sec = (time_t)(ns / 1000000000ull), .tv_nsec = (long)(ns % 1000000000ull)};
}

static void monotonic(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}

/* -- the gate -- */

static void one_more_thread(struct call *call);

static struct call *take_queued(void) {
  struct call *call = queue;
  if (call == NULL || (memory_used && memory_used + call->program->memory_max > options.memory_bytes)) return NULL;
  queue = call->queued;
  if (queue == NULL) queue_end = &queue;
  queued--, wanting--;
  memory_used += call->program->memory_max;
  return call;
}

static bool grant_waiter(void) {
  struct waiter *first = waiters;
  if (first == NULL) return false;
  waiters = first->next;
  if (waiters == NULL) waiters_end = &waiters;
  wanting--;
  first->granted = true;
  pthread_cond_signal(&first->granted_now);
  return true;
}

static bool begin_queued(void) {
  if (idle == NULL && threads >= options.threads) return false;
  struct call *call = take_queued();
  if (call == NULL) return false;
  if (idle == NULL) {
    one_more_thread(call);
  } else {
    struct thread *thread = idle;
    idle = thread->next;
    thread->call = call;
    pthread_cond_signal(&thread->called);
  }
  return true;
}

/* A place at the gate is free: to somebody who was inside before, or to a new call, in turns. */
static void pass_on(void) {
  waiter_first = !waiter_first;
  bool passed = waiter_first ? grant_waiter() || begin_queued() : begin_queued() || grant_waiter();
  if (passed) return;
  gate_free++;
  tick_end();
}

static void leave_queue(struct waiter *self) {
  struct waiter **place = &waiters;
  while (*place != self) place = &(*place)->next;
  *place = self->next;
  if (waiters_end == &self->next) waiters_end = place;
  wanting--;
}

/* False when the deadline passed first, or nobody wants the answer any more. */
static bool gate_enter(struct call *call) {
  bool entered = true;
  pthread_mutex_lock(&gate_lock);
  if (gate_free > 0) {
    gate_free--;
    tick_begin();
  } else {
    struct waiter self = {0};
    monotonic(&self.granted_now);
    *waiters_end = &self, waiters_end = &self.next;
    wanting++;
    while (!self.granted && !call->cancelled && now_ns() < call->deadline_ns) {
      uint64_t look = now_ns() + 50000000; /* whether it was cancelled */
      struct timespec until = when(look < call->deadline_ns ? look : call->deadline_ns);
      pthread_cond_timedwait(&self.granted_now, &gate_lock, &until);
    }
    entered = self.granted;
    if (!entered) leave_queue(&self);
    pthread_cond_destroy(&self.granted_now);
  }
  pthread_mutex_unlock(&gate_lock);
  call->gate_held = entered;
  return entered;
}

static void gate_leave(struct call *call) {
  if (!call->gate_held) return;
  call->gate_held = false;
  pthread_mutex_lock(&gate_lock);
  pass_on();
  pthread_mutex_unlock(&gate_lock);
}

bool gate_wait(struct call *call, uint64_t until_ns) {
  gate_leave(call);
  struct timespec until = when(until_ns);
  int result = call->cancelled ? 0 : pthread_cond_timedwait(&call->changed, &call->lock, &until);
  pthread_mutex_unlock(&call->lock);
  bool entered = gate_enter(call);
  pthread_mutex_lock(&call->lock);
  return entered && result != ETIMEDOUT && !call->cancelled;
}

/* -- running -- */

wasm_trap_t *stop_guest(struct call *call, enum outcome verdict) {
  static const char why[] = "stopped by the host";
  call->verdict = verdict;
  return wasmtime_trap_new(why, sizeof why - 1);
}

/* At every tick, inside guest code. */
static wasmtime_error_t *on_tick(wasmtime_context_t *context, void *data, uint64_t *delta, uint8_t *kind) {
  struct call *call = data;
  uint64_t now = now_ns(), cpu = thread_cpu_ns() - call->cpu_started_ns;
  (void)context;
  if (call->cancelled)
    call->verdict = OUTCOME_CANCELED;
  else if (now >= call->deadline_ns)
    call->verdict = OUTCOME_WALL;
  else if (cpu >= call->program->cpu_ns)
    call->verdict = OUTCOME_CPU;
  else if (call->out_size && now - call->out_since_ns > FLUSH_AFTER_NS && !out_flush(call, false) && !call->verdict)
    call->verdict = OUTCOME_CANCELED;
  if (call->verdict) return wasmtime_error_new("stopped by the host");
  if (call->log_size) log_flush(call);
  if (cpu > SLOW_AFTER_NS) run_at(SLOW);
  if (wanting) {
    gate_leave(call);
    if (!gate_enter(call)) {
      call->verdict = call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL;
      return wasmtime_error_new("stopped by the host");
    }
  }
  *delta = 1;
  *kind = WASMTIME_DEADLINE_CONTINUE;
  return NULL;
}

static enum outcome outcome_of_trap(wasm_trap_t *trap) {
  uint8_t code;
  if (!wasmtime_trap_code(trap, &code)) return OUTCOME_TRAP;
  return code == TRAP_STACK_OVERFLOW ? OUTCOME_STACK : code == TRAP_OUT_OF_FUEL ? OUTCOME_FUEL : OUTCOME_TRAP;
}

/* What the log says of it first; NULL: nothing to tell. */
static const char *const reasons[OUTCOME_BROKEN + 1] = {
    [OUTCOME_TRAP] = "trap",
    [OUTCOME_WALL] = "stopped: it did not answer within limits.wall_s; it was here:",
    [OUTCOME_CPU] = "stopped: it used more processor time than limits.cpu_s; it was here:",
    [OUTCOME_FUEL] = "stopped: it executed more instructions than limits.fuel; it was here:",
    [OUTCOME_MEMORY] = "not started: it needs more memory or larger tables than its limits:",
    [OUTCOME_STACK] = "trap: it used more stack than limits.stack_bytes:",
    [OUTCOME_OUTPUT] = "stopped: it answered with more than limits.response_bytes; it was here:",
};

/* The verdict over what the engine gave back; takes both. */
static enum outcome conclude(struct call *call, wasmtime_error_t *error, wasm_trap_t *trap, bool instantiating) {
  enum outcome outcome = OUTCOME_OK;
  char *text = NULL;
  if (error != NULL) text = error_text(error), outcome = instantiating ? OUTCOME_MEMORY : OUTCOME_TRAP;
  if (trap != NULL) {
    outcome = outcome_of_trap(trap);
    text = trap_text(trap);
    wasm_trap_delete(trap);
  }
  if (call->exited) outcome = call->exit_code == 0 ? OUTCOME_OK : OUTCOME_EXIT;
  if (call->verdict) outcome = call->verdict;
  if (text != NULL && reasons[outcome] != NULL) {
    size_t size = strlen(reasons[outcome]) + strlen(text) + 2;
    char *both = malloc(size);
    if (both == NULL) abort();
    snprintf(both, size, "%s\n%s", reasons[outcome], text);
    log_send(call, 1, (const uint8_t *)both, (uint32_t)strlen(both));
    free(both);
  }
  free(text);
  return outcome;
}

bool find_function(wasmtime_context_t *context, wasmtime_instance_t *instance, const char *name,
                          wasmtime_func_t *found) {
  wasmtime_extern_t exported;
  if (!wasmtime_instance_export_get(context, instance, name, strlen(name), &exported) ||
      exported.kind != WASMTIME_IS_FUNC)
    return false;
  *found = exported.of.func;
  return true;
}

enum outcome enter_guest(struct call *call, wasmtime_context_t *context, wasmtime_func_t *entry,
                          wasmtime_val_raw_t *values, size_t count) {
  wasm_trap_t *trap = NULL;
  wasmtime_error_t *error = wasmtime_func_call_unchecked(context, entry, values, count, &trap);
  return error == NULL && trap == NULL ? OUTCOME_OK : conclude(call, error, trap, false);
}

static enum outcome run_command(struct call *call, wasmtime_context_t *context, wasmtime_instance_t *instance) {
  wasmtime_func_t function;
  wasmtime_val_raw_t none[1] = {{0}};
  if (!find_function(context, instance, "_start", &function)) return OUTCOME_BROKEN;
  return enter_guest(call, context, &function, none, 0);
}

static enum outcome run_store(struct call *call) {
  const struct program *program = call->program;
  wasmtime_store_t *store = wasmtime_store_new(engine, call, NULL);
  wasmtime_context_t *context = wasmtime_store_context(store);
  wasmtime_store_limiter(store, (int64_t)program->memory_max, (int64_t)program->table_elements, 1, 16, 1);
  wasmtime_store_epoch_deadline_callback(store, on_tick, call, NULL);
  wasmtime_context_set_epoch_deadline(context, 1);
  if (options.fuel) {
    wasmtime_error_t *error = wasmtime_context_set_fuel(context, program->fuel ? program->fuel : UINT64_MAX / 2);
    if (error != NULL) wasmtime_error_delete(error);
  }
  wasm_trap_t *trap = NULL;
  wasmtime_instance_t instance;
  wasi_begin(call);
  wasmtime_error_t *error = wasmtime_instance_pre_instantiate(program->code->pre, context, &instance, &trap);
  call->instantiate_ns = now_ns() - call->started_ns;
  enum outcome outcome = error || trap ? conclude(call, error, trap, true) : OUTCOME_OK;
  if (outcome == OUTCOME_OK && !call->exited) {
    wasmtime_extern_t memory;
    call->has_memory = wasmtime_instance_export_get(context, &instance, "memory", 6, &memory) &&
                       memory.kind == WASMTIME_IS_MEMORY;
    if (call->has_memory) call->memory = memory.of.memory;
    outcome = program->kind == PROGRAM_REACTOR ? run_reactor(call, context, &instance)
                                               : run_command(call, context, &instance);
  }
  if (call->has_memory) call->memory_peak = wasmtime_memory_data_size(context, &call->memory);
  call->has_memory = false;
  wasi_end(call);
  wasmtime_store_delete(store);
  return outcome;
}

static unsigned bucket_of(uint64_t ns) {
  uint64_t quarters = ns / 250; /* of a microsecond */
  if (quarters < 4) return 0;
  unsigned doublings = 63 - (unsigned)__builtin_clzll(quarters);
  unsigned bucket = (doublings - 2) * 4 + (unsigned)(quarters >> (doublings - 2) & 3);
  return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static void count(struct call *call, enum outcome outcome, uint64_t cpu_ns, uint64_t wall_ns) {
  struct program *program = call->program;
  pthread_mutex_lock(&program->lock);
  struct counters *to = &program->counters;
  to->changed = true;
  to->in_flight--;
  to->requests++;
  to->refused += outcome == OUTCOME_BUSY;
  to->timeouts += outcome == OUTCOME_WALL || outcome == OUTCOME_CPU;
  to->traps += outcome == OUTCOME_TRAP || outcome == OUTCOME_FUEL || outcome == OUTCOME_MEMORY ||
               outcome == OUTCOME_STACK || outcome == OUTCOME_BROKEN;
  to->errors += outcome != OUTCOME_OK && outcome != OUTCOME_CANCELED;
  to->cpu_ns += cpu_ns, to->wall_ns += wall_ns, to->instantiate_ns += call->instantiate_ns;
  if (call->memory_peak > to->memory_peak) to->memory_peak = call->memory_peak;
  to->latency[bucket_of(wall_ns)]++;
  if (++to->latency_count == 4096) {
    to->latency_count = 0;
    for (int n = 0; n < LATENCY_BUCKETS; n++) to->latency_count += to->latency[n] /= 2;
  }
  pthread_mutex_unlock(&program->lock);
}

/* The rest of the answer and the end, in one write. */
static void finish(struct call *call, enum outcome outcome, uint64_t cpu_ns) {
  uint64_t wall_ns = now_ns() - call->received_ns;
  uint8_t small[FRAME_HEADER + 64], *frames = small;
  uint32_t size = 0;
  if (call->out != NULL && call->out_size) {
    if (out_flush(call, true)) {
      frames = call->out; /* has room behind */
      put32(frames, call->out_size);
      frames[4] = FRAME_OUT, frames[5] = 0, frames[6] = frames[7] = 0;
      put32(frames + 8, call->stream);
      size = FRAME_HEADER + call->out_size;
    } else if (call->verdict) {
      outcome = call->verdict;
    }
  }
  uint8_t *end = frames + size;
  put32(end, 40);
  end[4] = FRAME_END, end[5] = FLAG_LAST, end[6] = end[7] = 0;
  put32(end + 8, call->stream);
  end[12] = (uint8_t)outcome, end[13] = end[14] = end[15] = 0;
  put32(end + 16, call->exit_code);
  put64(end + 20, cpu_ns), put64(end + 28, wall_ns), put64(end + 36, call->memory_peak);
  put64(end + 44, call->instantiate_ns);
  if (call->log_size) log_flush(call);
  count(call, outcome, cpu_ns, wall_ns);
  send_raw(call->from, frames, size + FRAME_HEADER + 40);
}

static void run(struct call *call, uint8_t *out) {
  run_at(much_computed ? SLOW : BRISK);
  call->started_ns = now_ns();
  call->cpu_started_ns = thread_cpu_ns();
  call->out = out;
  call->gate_held = true;
  char *why = NULL;
  enum outcome outcome = call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL;
  if (!call->cancelled && call->started_ns < call->deadline_ns) {
    if (!acquire_code(call->program->code, &why)) {
      outcome = strstr(why, "exceeds the limit") != NULL ? OUTCOME_MEMORY : OUTCOME_BROKEN;
      log_send(call, 1, (const uint8_t *)why, (uint32_t)strlen(why));
      free(why);
    } else {
      outcome = run_store(call);
      release_code(call->program->code);
    }
  }
  finish(call, outcome, thread_cpu_ns() - call->cpu_started_ns);
  call->out = NULL;
}

/* The next call for a thread that has just ended one: with its place at the gate, when that is its turn. */
static struct call *next_call(struct thread *self, struct call *ended) {
  bool held = ended->gate_held;
  uint64_t memory = ended->program->memory_max;
  call_unref(ended);
  pthread_mutex_lock(&gate_lock);
  memory_used -= memory;
  struct call *call = NULL;
  if (held && waiters == NULL) call = take_queued();
  if (call == NULL) {
    if (held) {
      pass_on();
    } else if (gate_free > 0 && queue != NULL) { /* its memory may let another one in */
      gate_free--;
      tick_begin();
      pass_on();
    }
    self->call = NULL;
    self->next = idle, idle = self;
    while (self->call == NULL) pthread_cond_wait(&self->called, &gate_lock);
    call = self->call;
  }
  pthread_mutex_unlock(&gate_lock);
  return call;
}

static void *thread_main(void *first) {
  struct thread self = {.call = first};
  pthread_setname_np(pthread_self(), "call");
  pthread_cond_init(&self.called, NULL);
  uint8_t *out = malloc(FRAME_HEADER + OUT_ROOM + FRAME_HEADER + 40);
  if (out == NULL) abort();
  for (struct call *call = first;;) {
    run(call, out);
    call = next_call(&self, call);
  }
  return NULL;
}

/* For a call that has its place at the gate; with the lock held. */
static void one_more_thread(struct call *call) {
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, options.stack_bytes + 512 * 1024);
  if (pthread_create(&thread, &attributes, thread_main, call) != 0) abort(); /* the worker starts another host */
  pthread_detach(thread);
  threads++;
  pthread_attr_destroy(&attributes);
}

/* False when the queue is full. Takes a reference to the call. */
bool enqueue(struct call *call) {
  pthread_mutex_lock(&gate_lock);
  bool ok = queued < options.queue;
  if (ok) {
    atomic_fetch_add(&call->users, 1);
    call->queued = NULL;
    *queue_end = call, queue_end = &call->queued;
    queued++, wanting++;
    if (gate_free > 0) {
      gate_free--;
      tick_begin();
      pass_on();
    }
  }
  pthread_mutex_unlock(&gate_lock);
  return ok;
}

/* Calls whose time passed before they began. The main thread asks now and then. */
void expire_queued(void) {
  struct call *expired = NULL;
  uint64_t now = now_ns();
  pthread_mutex_lock(&gate_lock);
  for (struct call **place = &queue; *place != NULL;) {
    struct call *call = *place;
    if (!call->cancelled && now < call->deadline_ns) {
      place = &call->queued;
      continue;
    }
    *place = call->queued;
    if (queue_end == &call->queued) queue_end = place;
    queued--, wanting--;
    call->queued = expired, expired = call;
  }
  pthread_mutex_unlock(&gate_lock);
  while (expired != NULL) {
    struct call *call = expired;
    expired = call->queued;
    finish(call, call->cancelled ? OUTCOME_CANCELED : OUTCOME_WALL, 0);
    call_unref(call);
  }
}

void call_unref(struct call *call) {
  if (atomic_fetch_sub(&call->users, 1) != 1) return;
  while (call->body != NULL) {
    struct chunk *next = call->body->next;
    free(call->body);
    call->body = next;
  }
  pthread_mutex_destroy(&call->lock);
  pthread_cond_destroy(&call->changed);
  connection_unref(call->from);
  program_unref(call->program);
  free(call->variables);
  free(call->log);
  free(call);
}

void start_threads(void) {
  gate_free = options.running;
  choose_processors();
}
