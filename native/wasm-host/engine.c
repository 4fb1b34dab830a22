/* The engine: its configuration (the same for compiling and for running), its epoch, and code made from what the
 * compiler wrote. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

#define DEFINE(name, result, parameters) result(*name) parameters;
WASMTIME_API(DEFINE)
#undef DEFINE

enum { TICK_NS = 2 * 1000 * 1000, KEPT_RESIDENT = 256 * 1024, CORE_INSTANCE_MAX = 1024 * 1024, TABLES_MAX = 16 };

wasm_engine_t *engine;
wasmtime_linker_t *linker;

static pthread_mutex_t tick_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t tick_wanted = PTHREAD_COND_INITIALIZER;
static unsigned ticking; /* calls that run guest code */
static bool ticker_sleeps;

const char *load_wasmtime(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return dlerror();
#define FIND(name, result, parameters) \
  *(void **)&name = dlsym(library, #name); \
  if (name == NULL) return "the wasmtime library has no " #name;
  WASMTIME_API(FIND)
#undef FIND
  return NULL;
}

wasm_engine_t *make_engine(const struct options *limits, bool pooling) {
  wasm_config_t *config = wasm_config_new();
  wasmtime_config_epoch_interruption_set(config, true);
  wasmtime_config_consume_fuel_set(config, limits->fuel);
  wasmtime_config_max_wasm_stack_set(config, limits->stack_bytes);
  /* Off: what needs another allocator than ours, or would let a guest hold a thread of the host. */
  wasmtime_config_wasm_threads_set(config, false);
  wasmtime_config_wasm_memory64_set(config, false);
  wasmtime_config_wasm_multi_memory_set(config, false);
  wasmtime_config_wasm_gc_set(config, false);
  wasmtime_config_wasm_exceptions_set(config, false);
  wasmtime_config_wasm_function_references_set(config, false);
  wasmtime_config_parallel_compilation_set(config, true);
  wasmtime_config_memory_init_cow_set(config, true);
  if (pooling) {
    wasmtime_pooling_t *pool = wasmtime_pooling_allocation_config_new();
    uint32_t slots = limits->threads + 1;
    wasmtime_pooling_allocation_config_total_core_instances_set(pool, slots);
    wasmtime_pooling_allocation_config_total_memories_set(pool, slots);
    wasmtime_pooling_allocation_config_total_tables_set(pool, slots * TABLES_MAX);
    wasmtime_pooling_allocation_config_total_component_instances_set(pool, 1);
    wasmtime_pooling_allocation_config_total_stacks_set(pool, 1);
    wasmtime_pooling_allocation_config_max_memory_size_set(pool, limits->memory_max);
    wasmtime_pooling_allocation_config_max_core_instance_size_set(pool, CORE_INSTANCE_MAX);
    wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, TABLES_MAX);
    wasmtime_pooling_allocation_config_table_elements_set(pool, limits->table_elements);
    wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, KEPT_RESIDENT);
    wasmtime_pooling_allocation_config_table_keep_resident_set(pool, 16 * 1024);
    wasmtime_pooling_allocation_config_max_unused_warm_slots_set(pool, 8);
    wasmtime_pooling_allocation_strategy_set(config, pool);
    wasmtime_pooling_allocation_config_delete(pool);
  }
  return wasm_engine_new_with_config(config);
}

static char *text_of(wasm_byte_vec_t *bytes) {
  size_t size = bytes->size > 16384 ? 16384 : bytes->size;
  char *text = malloc(size + 1);
  if (text == NULL) abort();
  memcpy(text, bytes->data, size);
  text[size] = 0;
  wasm_byte_vec_delete(bytes);
  return text;
}

char *error_text(wasmtime_error_t *error) {
  wasm_byte_vec_t message;
  wasmtime_error_message(error, &message);
  wasmtime_error_delete(error);
  return text_of(&message);
}

char *trap_text(wasm_trap_t *trap) {
  wasm_byte_vec_t message;
  wasm_trap_message(trap, &message);
  return text_of(&message);
}

static bool load(struct code *code, char **why) {
  struct stat found;
  void *bytes = MAP_FAILED;
  if (fstat(code->fd, &found) == 0 && found.st_size > 0)
    bytes = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, code->fd, 0);
  if (bytes == MAP_FAILED) {
    *why = strdup("the compiled code cannot be read");
    return false;
  }
  wasmtime_error_t *error = wasmtime_module_deserialize(engine, bytes, (size_t)found.st_size, &code->module);
  munmap(bytes, (size_t)found.st_size);
  if (error == NULL) {
    error = wasmtime_linker_instantiate_pre(linker, code->module, &code->pre);
    if (error != NULL) wasmtime_module_delete(code->module), code->module = NULL;
  }
  if (error != NULL) *why = error_text(error);
  return error == NULL;
}

bool acquire_code(struct code *code, char **why) {
  pthread_mutex_lock(&code->lock);
  bool ok = code->pre != NULL || load(code, why);
  if (ok) code->running++;
  pthread_mutex_unlock(&code->lock);
  return ok;
}

void release_code(struct code *code) {
  pthread_mutex_lock(&code->lock);
  code->running--;
  code->used_ns = now_ns();
  pthread_mutex_unlock(&code->lock);
}

static void unload(struct code *code) {
  if (code->pre != NULL) wasmtime_instance_pre_delete(code->pre);
  if (code->module != NULL) wasmtime_module_delete(code->module);
  code->pre = NULL, code->module = NULL;
}

void unload_idle_code(struct code *code, uint64_t older_than_ns) {
  pthread_mutex_lock(&code->lock);
  if (code->running == 0 && code->used_ns < older_than_ns) unload(code);
  pthread_mutex_unlock(&code->lock);
}

void free_code(struct code *code) {
  unload(code);
  close(code->fd);
  pthread_mutex_destroy(&code->lock);
  free(code->key);
  free(code);
}

static void *ticker(void *unused) {
  (void)unused;
  pthread_setname_np(pthread_self(), "ticker");
  for (;;) {
    pthread_mutex_lock(&tick_lock);
    while (ticking == 0) {
      ticker_sleeps = true;
      pthread_cond_wait(&tick_wanted, &tick_lock);
    }
    ticker_sleeps = false;
    pthread_mutex_unlock(&tick_lock);
    struct timespec pause = {.tv_nsec = TICK_NS};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    wasmtime_engine_increment_epoch(engine);
  }
  return NULL;
}

void tick_begin(void) {
  pthread_mutex_lock(&tick_lock);
  if (ticking++ == 0 && ticker_sleeps) pthread_cond_signal(&tick_wanted);
  pthread_mutex_unlock(&tick_lock);
}

void tick_end(void) {
  pthread_mutex_lock(&tick_lock);
  ticking--;
  pthread_mutex_unlock(&tick_lock);
}

void start_engine(void) {
  engine = make_engine(&options, true);
  if (engine == NULL) {
    fprintf(stderr, "corral-wasm-host: the engine refuses its configuration\n");
    exit(70);
  }
  linker = wasmtime_linker_new(engine);
  define_wasi(linker);
  pthread_t thread;
  if (pthread_create(&thread, NULL, ticker, NULL) != 0) abort();
  pthread_detach(thread);
}
