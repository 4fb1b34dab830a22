/* corral-wasm-host LIBRARY compile|serve|exec|apart [NAME=NUMBER …] [-- PROGRAM …]
 *
 * compile: a module on standard input becomes machine code on standard output.
 * exec: becomes the program after "--" with the same limits (LIBRARY is "-").
 * apart: runs that program in a network of its own; see apart.c for its options.
 * serve: control (SOCK_SEQPACKET) is descriptor 3, the listening socket of fronts descriptor 4. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

struct options options = {
    .threads = 32, .queue = 1024, .running = 2, .memory_bytes = 1ull << 30, .memory_max = 1ull << 28,
    .table_elements = 100000, .stack_bytes = 512 * 1024,
};

static uint64_t user, group, address_space, data_bytes, cpu_s, files = 4096, file_bytes = 1ull << 30;

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
uint64_t thread_cpu_ns(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

static int usage(void) {
  fprintf(stderr, "usage: corral-wasm-host LIBRARY compile|serve|exec|apart [NAME=VALUE ...] [-- PROGRAM ...]\n");
  return 64;
}

static bool option(const char *text) {
  const char *equals = strchr(text, '=');
  char *end;
  if (equals == NULL) return false;
  uint64_t value = strtoull(equals + 1, &end, 10);
  size_t size = (size_t)(equals - text);
  if (*end != 0 || end == equals + 1) return false;
#define TAKE(name, place) \
  if (size == strlen(name) && memcmp(text, name, size) == 0) return place = (__typeof__(place))value, true;
  TAKE("threads", options.threads)
  TAKE("queue", options.queue)
  TAKE("running", options.running)
  TAKE("memory-bytes", options.memory_bytes)
  TAKE("memory-max", options.memory_max)
  TAKE("table-elements", options.table_elements)
  TAKE("stack-bytes", options.stack_bytes)
  TAKE("fuel", options.fuel)
  TAKE("user", user)
  TAKE("group", group)
  TAKE("address-space", address_space)
  TAKE("data-bytes", data_bytes)
  TAKE("cpu-s", cpu_s)
  TAKE("files", files)
  TAKE("file-bytes", file_bytes)
#undef TAKE
  return false;
}

static void limit(int what, uint64_t value) {
  struct rlimit both = {.rlim_cur = value, .rlim_max = value};
  if (setrlimit(what, &both) != 0) {
    perror("corral-wasm-host: setrlimit");
    exit(71);
  }
}

static void become_small(void) {
  struct rlimit nice_again = {.rlim_cur = 20, .rlim_max = 20}; /* a call that was slowed gets its priority back */
  setrlimit(RLIMIT_NICE, &nice_again);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_NOFILE, files);
  limit(RLIMIT_FSIZE, file_bytes);
  if (address_space) limit(RLIMIT_AS, address_space);
  if (data_bytes) limit(RLIMIT_DATA, data_bytes);
  if (cpu_s) limit(RLIMIT_CPU, cpu_s);
  bool became = !group || (setgroups(0, NULL) == 0 && setresgid((gid_t)group, (gid_t)group, (gid_t)group) == 0);
  became = became && (!user || setresuid((uid_t)user, (uid_t)user, (uid_t)user) == 0);
  if (!became) {
    perror("corral-wasm-host: the tenant's user (engine.first_user)");
    exit(71);
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return usage();
  int rest = 3;
  for (; rest < argc && strcmp(argv[rest], "--") != 0; rest++)
    if (!option(argv[rest]) && !apart_option(argv[rest])) return usage();
  if (options.threads < 1 || options.threads > 4096 || options.running < 1) return usage();
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  signal(SIGPIPE, SIG_IGN);
  bool apart = strcmp(argv[2], "apart") == 0;
  if (apart || strcmp(argv[2], "exec") == 0) {
    if (rest + 1 >= argc) return usage();
    if (apart) run_apart(argv + rest + 1, become_small);
    become_small();
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    confine_program(false);
    execv(argv[rest + 1], argv + rest + 1);
    perror("corral-wasm-host: exec");
    return 72;
  }
  const char *trouble = load_wasmtime(argv[1]);
  if (trouble != NULL) {
    fprintf(stderr, "corral-wasm-host: %s\n", trouble);
    return 69;
  }
  become_small();
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* again: changing the user clears it */
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (strcmp(argv[2], "compile") == 0) {
    confine();
    return compile_main(&options);
  }
  if (strcmp(argv[2], "serve") != 0) return usage();
  start_engine();
  confine();
  start_threads();
  serve(3, 4);
}
