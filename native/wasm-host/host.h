/* corral-wasm-host: runs WebAssembly modules of one tenant, a fresh instance for every request.
 *
 * Threads: the main thread reads frames and hands calls over (link.c); every call runs on a thread of its own from
 * a bounded set (call.c); one ticker advances the epoch while calls run. A lock is never held across guest code.
 * The frames are described in docs/reference/functions-abi.md. */
#ifndef CORRAL_WASM_HOST_H
#define CORRAL_WASM_HOST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "wasmtime.h"

enum {
  FRAME_PAYLOAD_MAX = 512 * 1024,
  FRAME_HEADER = 12, /* u32 payload, u8 kind, u8 flags, u16 zero, u32 stream; little-endian */
  WINDOW = 256 * 1024, /* bytes of a body, or of an answer, that may be on their way */
  CALL_ARGS_MAX = 100,
  DESCRIPTORS_MAX = 128,
  PREOPENS_MAX = 16,
};

enum frame_kind {
  FRAME_CALL = 1,   /* front: key, deadline, variables */
  FRAME_BODY = 2,   /* front: bytes of the request; FLAG_LAST ends it */
  FRAME_CANCEL = 3, /* front: nobody waits any more */
  FRAME_CREDIT = 4, /* both: u32 more bytes may be sent */
  FRAME_OUT = 5,    /* host: bytes of the answer */
  FRAME_END = 6,    /* host: how the call ended */
  FRAME_LOAD = 16,  /* worker: a program, its limits and descriptors */
  FRAME_UNLOAD = 17,
  FRAME_LOADED = 18,
  FRAME_STATS = 20, /* to the worker: counters of one instance, when they changed */
  FRAME_LOG = 21,   /* to the worker: what a call wrote to stderr, or its trap */
};
enum { FLAG_LAST = 1 };

/* How a call ended; the numbers are part of the wire format. */
enum outcome {
  OUTCOME_OK = 0,
  OUTCOME_EXIT = 1,     /* left with a status that is not 0 */
  OUTCOME_TRAP = 2,
  OUTCOME_WALL = 3,
  OUTCOME_CPU = 4,
  OUTCOME_FUEL = 5,
  OUTCOME_MEMORY = 6,   /* could not be instantiated within its memory or tables */
  OUTCOME_STACK = 7,
  OUTCOME_OUTPUT = 8,   /* answered more than it may */
  OUTCOME_CANCELED = 9,
  OUTCOME_UNKNOWN = 10, /* no such instance here */
  OUTCOME_BUSY = 11,
  OUTCOME_BROKEN = 12,  /* the program cannot be loaded */
};

enum program_kind { PROGRAM_COMMAND = 0, PROGRAM_REACTOR = 1 };

struct options {
  unsigned threads;      /* calls that run at once */
  unsigned queue;        /* calls that wait for a thread */
  unsigned running;      /* of the running calls, those that may use a processor at once */
  uint64_t memory_bytes; /* of all calls that run at once */
  uint64_t memory_max;   /* of one */
  uint64_t table_elements;
  uint64_t stack_bytes;
  bool fuel;
};

struct preopen {
  int fd;
  bool writable;
  char *guest;
};

enum { LATENCY_BUCKETS = 128 }; /* four to a doubling, from 1 us */

struct counters {
  bool changed;
  uint64_t requests, errors, traps, timeouts, refused, in_flight;
  uint64_t cpu_ns, wall_ns, instantiate_ns, memory_peak;
  uint32_t latency[LATENCY_BUCKETS]; /* halved now and then, so that it tells of the last few thousand */
  uint32_t latency_count;
};

/* Machine code, shared by the instances that run it. Made from the descriptor at the first call. */
struct code {
  struct code *next;
  char *key;
  int fd;
  unsigned users;   /* instances */
  pthread_mutex_t lock; /* what follows */
  unsigned running; /* calls */
  uint64_t used_ns;
  wasmtime_module_t *module;
  wasmtime_instance_pre_t *pre;
};

/* An instance in Corral's sense: a loaded program and its limits. Freed with the last call that uses it. */
struct program {
  struct program *next;
  char *key;
  struct code *code;
  enum program_kind kind;
  uint64_t memory_max, table_elements, fuel, response_max, log_max, cpu_ns;
  unsigned argc, envc;
  char **argv, **envv;
  char *handler;
  unsigned preopen_count;
  struct preopen preopens[PREOPENS_MAX];
  atomic_uint users;
  pthread_mutex_t lock; /* the counters */
  struct counters counters;
};

struct connection;

struct chunk {
  struct chunk *next;
  uint32_t size, used;
  uint8_t bytes[];
};

struct descriptor {
  enum { FD_FREE, FD_STDIN, FD_STDOUT, FD_STDERR, FD_PREOPEN, FD_DIRECTORY, FD_FILE } kind;
  int fd; /* of the host, where there is one */
  bool writable, append;
  unsigned preopen;
};

struct call {
  struct call *next; /* in its connection's list, or in the queue */
  struct call *queued;
  struct connection *from;
  uint32_t stream;
  struct program *program;
  atomic_uint users;
  atomic_bool cancelled;
  uint64_t received_ns, deadline_ns, started_ns, cpu_started_ns;

  char *variables; /* NUL-terminated NAME=VALUE, one after the other */
  uint32_t variables_size, variable_count;
  const char *request_id;

  pthread_mutex_t lock; /* the body, and the window of the answer */
  pthread_cond_t changed;
  struct chunk *body, *body_tail;
  uint32_t body_held, body_credit;
  bool body_ended;
  uint32_t window;

  /* the rest belongs to the thread that runs it */
  wasmtime_memory_t memory;
  bool has_memory, gate_held;
  enum outcome verdict; /* why the host ended it; OUTCOME_OK while it did not */
  bool exited;
  uint32_t exit_code;
  uint8_t *out;
  uint32_t out_size;
  uint64_t out_total, out_since_ns;
  uint8_t *log;
  uint32_t log_size, log_room;
  uint64_t log_total;
  uint64_t memory_peak;
  uint64_t instantiate_ns;
  struct descriptor descriptors[DESCRIPTORS_MAX];
};

/* main.c */
extern struct options options;
uint64_t now_ns(void);
uint64_t thread_cpu_ns(void);

/* engine.c */
wasm_engine_t *make_engine(const struct options *limits, bool pooling);
char *error_text(wasmtime_error_t *error); /* takes the error; malloc'd */
char *trap_text(wasm_trap_t *trap);        /* keeps the trap; malloc'd, with the backtrace */
bool acquire_code(struct code *code, char **why); /* loads it first when it is not; pairs with release_code */
void release_code(struct code *code);
void unload_idle_code(struct code *code, uint64_t older_than_ns);
void free_code(struct code *code);
void start_engine(void);
void tick_begin(void); /* a place at the gate is taken: keep ticking */
void tick_end(void);
extern wasm_engine_t *engine;
extern wasmtime_linker_t *linker;

/* wasi.c */
void define_wasi(wasmtime_linker_t *into);
const char *wasi_names(void); /* for people */
bool wasi_has(const char *module, size_t module_size, const char *name, size_t name_size);
void wasi_begin(struct call *call);
void wasi_end(struct call *call);

/* wasi_files.c: everything below the pre-opened directories. All give WASI error numbers. */
uint16_t errno_to_wasi(int number);
int open_beneath(int directory, const char *path, uint64_t flags, uint64_t mode);
int open_parent(int directory, const char *path, bool follow_dots, const char **last);

/* call.c */
void start_threads(void);
bool enqueue(struct call *call);
void expire_queued(void);
void used_lately(double part);
void call_unref(struct call *call);
wasm_trap_t *stop_guest(struct call *call, enum outcome verdict);
bool gate_wait(struct call *call, uint64_t until_ns); /* with call->lock held: wait for `changed` without the gate */

/* output.c */
bool out_write(struct call *call, const uint8_t *bytes, size_t size);
bool out_flush(struct call *call, bool last);
void log_write(struct call *call, const uint8_t *bytes, size_t size);

/* link.c */
void serve(int control, int listener) __attribute__((noreturn));
bool send_frame(struct connection *to, uint8_t kind, uint8_t flags, uint32_t stream, const void *payload,
                uint32_t size);
bool send_raw(struct connection *to, const void *bytes, size_t size);
void send_control(uint8_t kind, const void *payload, uint32_t size, bool may_drop);
void connection_unref(struct connection *connection);
void program_unref(struct program *program);

/* confine.c */
void confine(void);         /* this process: only what it needs */
void confine_program(bool network); /* the program that this becomes: no mounts, no other processes; IP, or no sockets */

/* apart.c */
bool apart_option(const char *text); /* false when it is none */
void run_apart(char **program, void (*become_small)(void)) __attribute__((noreturn));

/* compile.c */
int compile_main(const struct options *limits);

static inline void put32(uint8_t *at, uint32_t value) {
  at[0] = (uint8_t)value, at[1] = (uint8_t)(value >> 8), at[2] = (uint8_t)(value >> 16), at[3] = (uint8_t)(value >> 24);
}
static inline void put64(uint8_t *at, uint64_t value) {
  put32(at, (uint32_t)value), put32(at + 4, (uint32_t)(value >> 32));
}
static inline uint32_t get32(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}
static inline uint64_t get64(const uint8_t *at) { return get32(at) | (uint64_t)get32(at + 4) << 32; }

#endif
