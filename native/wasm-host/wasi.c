/* WASI preview 1 for functions: standard streams that are the request, the answer and the log; variables, clocks,
 * random numbers; and files below pre-opened directories. No sockets, no processes, no signals.
 *
 * It is our own and small because a guest that waits must still end at its deadline, and the engine cannot interrupt
 * a host call: whatever waits here waits on the call's condition, until the deadline. Every guest address is checked
 * against the memory as it is at this moment. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

enum { E_OK = 0, E_2BIG = 1, E_ACCES = 2, E_BADF = 8, E_FAULT = 21, E_INVAL = 28, E_NOTDIR = 54, E_NOENT = 44,
       E_NOSYS = 52, E_NOTSUP = 58, E_ROFS = 69, E_SPIPE = 70, E_MFILE = 33, E_NAMETOOLONG = 37, E_NOTCAPABLE = 76,
       E_IO = 29 };
enum { TYPE_UNKNOWN = 0, TYPE_DIRECTORY = 3, TYPE_FILE = 4, TYPE_LINK = 7, TYPE_CHARACTER = 2 };
enum { PATH_MAX_BYTES = 4096, IOVECS_MAX = 1024, POLL_MAX = 256, DIRECTORY_CHUNK = 4096 };
enum { LOOKUP_FOLLOW = 1 };
enum { OFLAG_CREATE = 1, OFLAG_DIRECTORY = 2, OFLAG_EXCLUSIVE = 4, OFLAG_TRUNCATE = 8 };
enum { FDFLAG_APPEND = 1 };
#define RIGHT_FD_READ (1ull << 1)
#define RIGHT_FD_WRITE (1ull << 6)

struct guest {
  struct call *call;
  wasmtime_caller_t *caller;
  uint8_t *memory;
  uint64_t size;
  wasmtime_val_raw_t *values;
  wasm_trap_t *trap;
};

static uint8_t *at(struct guest *guest, uint32_t address, uint64_t size) {
  return address <= guest->size && size <= guest->size - address ? guest->memory + address : NULL;
}

static uint32_t arg32(const struct guest *guest, int n) { return (uint32_t)guest->values[n].i32; }
static uint64_t arg64(const struct guest *guest, int n) { return (uint64_t)guest->values[n].i64; }

static uint16_t put_u32(struct guest *guest, uint32_t address, uint32_t value) {
  uint8_t *to = at(guest, address, 4);
  if (to == NULL) return E_FAULT;
  put32(to, value);
  return E_OK;
}

static struct descriptor *descriptor_of(struct guest *guest, uint32_t fd) {
  if (fd >= DESCRIPTORS_MAX || guest->call->descriptors[fd].kind == FD_FREE) return NULL;
  return &guest->call->descriptors[fd];
}

static bool is_directory(const struct descriptor *of) { return of->kind == FD_PREOPEN || of->kind == FD_DIRECTORY; }

/* A path of the guest as a C string in `into`; 0, or an error. */
static uint16_t path_of(struct guest *guest, int n, char into[PATH_MAX_BYTES]) {
  uint32_t size = arg32(guest, n + 1);
  const uint8_t *from = at(guest, arg32(guest, n), size);
  if (from == NULL) return E_FAULT;
  if (size >= PATH_MAX_BYTES) return E_NAMETOOLONG;
  if (memchr(from, 0, size) != NULL) return E_INVAL;
  memcpy(into, from, size);
  into[size] = 0;
  if (size == 0) return E_NOENT;
  return into[0] == '/' ? E_NOTCAPABLE : E_OK;
}

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

/* -- descriptors -- */

static uint16_t fd_close(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  if (of == NULL) return E_BADF;
  if (of->kind == FD_FILE || of->kind == FD_DIRECTORY) close(of->fd);
  of->kind = FD_FREE;
  return E_OK;
}

static uint16_t fd_fdstat_get(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, 1), 24);
  if (of == NULL) return E_BADF;
  if (to == NULL) return E_FAULT;
  memset(to, 0, 24);
  to[0] = is_directory(of) ? TYPE_DIRECTORY : of->kind == FD_FILE ? TYPE_FILE : TYPE_UNKNOWN;
  to[2] = of->append ? FDFLAG_APPEND : 0;
  uint64_t rights = is_directory(of) ? ~0ull : of->kind == FD_STDIN ? RIGHT_FD_READ : RIGHT_FD_WRITE;
  if (of->kind == FD_FILE) rights = of->writable ? ~0ull : ~RIGHT_FD_WRITE;
  put64(to + 8, rights);
  put64(to + 16, is_directory(of) ? ~0ull : 0);
  return E_OK;
}

static uint16_t fd_fdstat_set_flags(struct guest *guest) {
  return descriptor_of(guest, arg32(guest, 0)) == NULL ? E_BADF : E_NOTSUP;
}

static uint16_t fd_fdstat_set_rights(struct guest *guest) {
  return descriptor_of(guest, arg32(guest, 0)) == NULL ? E_BADF : E_OK;
}

static void filestat_put(uint8_t *to, const struct stat *found) {
  memset(to, 0, 64);
  put64(to, found->st_dev);
  put64(to + 8, found->st_ino);
  to[16] = S_ISDIR(found->st_mode) ? TYPE_DIRECTORY : S_ISREG(found->st_mode) ? TYPE_FILE
           : S_ISLNK(found->st_mode) ? TYPE_LINK : TYPE_UNKNOWN;
  put64(to + 24, found->st_nlink);
  put64(to + 32, (uint64_t)found->st_size);
  put64(to + 40, (uint64_t)found->st_atim.tv_sec * 1000000000ull + (uint64_t)found->st_atim.tv_nsec);
  put64(to + 48, (uint64_t)found->st_mtim.tv_sec * 1000000000ull + (uint64_t)found->st_mtim.tv_nsec);
  put64(to + 56, (uint64_t)found->st_ctim.tv_sec * 1000000000ull + (uint64_t)found->st_ctim.tv_nsec);
}

static uint16_t fd_filestat_get(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, 1), 64);
  struct stat found = {0};
  if (of == NULL) return E_BADF;
  if (to == NULL) return E_FAULT;
  if ((is_directory(of) || of->kind == FD_FILE) && fstat(of->fd, &found) != 0) return errno_to_wasi(errno);
  filestat_put(to, &found);
  return E_OK;
}

static uint16_t fd_prestat_get(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, 1), 8);
  if (of == NULL || of->kind != FD_PREOPEN) return E_BADF;
  if (to == NULL) return E_FAULT;
  put32(to, 0);
  put32(to + 4, (uint32_t)strlen(guest->call->program->preopens[of->preopen].guest));
  return E_OK;
}

static uint16_t fd_prestat_dir_name(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  if (of == NULL || of->kind != FD_PREOPEN) return E_BADF;
  const char *name = guest->call->program->preopens[of->preopen].guest;
  uint32_t size = (uint32_t)strlen(name);
  uint8_t *to = at(guest, arg32(guest, 1), size);
  if (arg32(guest, 2) < size) return E_NAMETOOLONG;
  if (to == NULL) return E_FAULT;
  memcpy(to, name, size);
  return E_OK;
}

static uint16_t seek_to(struct guest *guest, int64_t offset, uint32_t whence, int result) {
  static const int kinds[] = {SEEK_SET, SEEK_CUR, SEEK_END};
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, result), 8);
  if (of == NULL) return E_BADF;
  if (of->kind != FD_FILE) return E_SPIPE;
  if (to == NULL) return E_FAULT;
  if (whence > 2) return E_INVAL;
  off_t place = lseek(of->fd, offset, kinds[whence]);
  if (place < 0) return errno_to_wasi(errno);
  put64(to, (uint64_t)place);
  return E_OK;
}

static uint16_t fd_seek(struct guest *guest) {
  return seek_to(guest, guest->values[1].i64, arg32(guest, 2), 3);
}

static uint16_t fd_tell(struct guest *guest) { return seek_to(guest, 0, 1, 1); }

static uint16_t fd_sync(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  return of == NULL ? E_BADF : of->kind == FD_FILE ? E_OK : E_INVAL; /* files outlive nothing here: no disk waits */
}

static uint16_t fd_advise(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  return of == NULL ? E_BADF : of->kind == FD_FILE ? E_OK : E_SPIPE;
}

static uint16_t fd_filestat_set_size(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  if (of == NULL || of->kind != FD_FILE || !of->writable) return E_BADF;
  if (arg64(guest, 1) > INT64_MAX) return E_INVAL;
  return ftruncate(of->fd, (off_t)arg64(guest, 1)) == 0 ? E_OK : errno_to_wasi(errno);
}

static uint16_t fd_renumber(struct guest *guest) {
  struct descriptor *from = descriptor_of(guest, arg32(guest, 0)), *to = descriptor_of(guest, arg32(guest, 1));
  if (from == NULL || to == NULL) return E_BADF;
  if (from->kind == FD_PREOPEN || to->kind == FD_PREOPEN) return E_NOTSUP;
  if (from == to) return E_OK;
  if (to->kind == FD_FILE || to->kind == FD_DIRECTORY) close(to->fd);
  *to = *from;
  from->kind = FD_FREE;
  return E_OK;
}

struct kernel_entry { uint64_t ino; int64_t off; uint16_t reclen; uint8_t type; char name[]; };

static uint16_t fd_readdir(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint32_t room = arg32(guest, 2), used = 0;
  uint8_t *to = at(guest, arg32(guest, 1), room);
  if (of == NULL) return E_BADF;
  if (!is_directory(of)) return E_NOTDIR;
  if (to == NULL) return E_FAULT;
  int directory = open_beneath(of->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (directory < 0) return errno_to_wasi(errno);
  uint16_t error = E_OK;
  if (lseek(directory, (off_t)arg64(guest, 3), SEEK_SET) < 0) error = E_INVAL;
  while (error == E_OK && used < room) {
    _Alignas(struct kernel_entry) uint8_t some[DIRECTORY_CHUNK];
    long got = syscall(SYS_getdents64, directory, some, sizeof some);
    if (got < 0) error = errno_to_wasi(errno);
    if (got <= 0) break;
    for (long place = 0; place < got && used < room;) {
      const struct kernel_entry *entry = (const void *)(some + place);
      uint32_t name_size = (uint32_t)strlen(entry->name);
      uint8_t head[24] = {0};
      put64(head, (uint64_t)entry->off);
      put64(head + 8, entry->ino);
      put32(head + 16, name_size);
      head[20] = entry->type == DT_DIR ? TYPE_DIRECTORY : entry->type == DT_REG ? TYPE_FILE
                 : entry->type == DT_LNK ? TYPE_LINK : TYPE_UNKNOWN;
      uint32_t part = room - used < sizeof head ? room - used : (uint32_t)sizeof head;
      memcpy(to + used, head, part), used += part;
      part = room - used < name_size ? room - used : name_size;
      memcpy(to + used, entry->name, part), used += part;
      place += entry->reclen;
    }
  }
  close(directory);
  return error != E_OK ? error : put_u32(guest, arg32(guest, 4), used);
}

/* -- paths -- */

static uint16_t directory_of(struct guest *guest, int n, bool writing, struct descriptor **found) {
  *found = descriptor_of(guest, arg32(guest, n));
  if (*found == NULL) return E_BADF;
  if (!is_directory(*found)) return E_NOTDIR;
  return writing && !(*found)->writable ? E_ROFS : E_OK;
}

static uint16_t new_descriptor(struct guest *guest, struct descriptor with, uint32_t result) {
  for (uint32_t fd = 0; fd < DESCRIPTORS_MAX; fd++) {
    if (guest->call->descriptors[fd].kind != FD_FREE) continue;
    uint16_t error = put_u32(guest, result, fd);
    if (error == E_OK) guest->call->descriptors[fd] = with;
    return error;
  }
  return E_MFILE;
}

static uint16_t path_open(struct guest *guest) {
  struct descriptor *in;
  char path[PATH_MAX_BYTES];
  uint32_t oflags = arg32(guest, 4), fdflags = arg32(guest, 7);
  uint64_t rights = arg64(guest, 5);
  bool wants_write = (rights & RIGHT_FD_WRITE) && !(oflags & OFLAG_DIRECTORY);
  bool writes = wants_write || (oflags & (OFLAG_CREATE | OFLAG_TRUNCATE));
  uint16_t error = directory_of(guest, 0, writes, &in);
  if (error == E_OK) error = path_of(guest, 2, path);
  if (error != E_OK) return error;
  uint64_t flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  flags |= !wants_write ? O_RDONLY : rights & RIGHT_FD_READ ? O_RDWR : O_WRONLY;
  if (oflags & OFLAG_CREATE) flags |= O_CREAT;
  if (oflags & OFLAG_EXCLUSIVE) flags |= O_EXCL;
  if (oflags & OFLAG_TRUNCATE) flags |= O_TRUNC;
  if (oflags & OFLAG_DIRECTORY) flags |= O_DIRECTORY;
  if (fdflags & FDFLAG_APPEND) flags |= O_APPEND;
  if (!(arg32(guest, 1) & LOOKUP_FOLLOW)) flags |= O_NOFOLLOW;
  int fd = open_beneath(in->fd, path, flags, flags & O_CREAT ? 0644 : 0);
  if (fd < 0) return errno_to_wasi(errno);
  struct stat found;
  if (fstat(fd, &found) != 0 || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))) {
    close(fd); /* no pipes, sockets or devices: they could make a host call wait */
    return E_ACCES;
  }
  struct descriptor opened = {.kind = S_ISDIR(found.st_mode) ? FD_DIRECTORY : FD_FILE, .fd = fd,
                              .writable = S_ISDIR(found.st_mode) ? in->writable : wants_write,
                              .append = fdflags & FDFLAG_APPEND};
  error = new_descriptor(guest, opened, arg32(guest, 8));
  if (error != E_OK) close(fd);
  return error;
}

static uint16_t path_filestat_get(struct guest *guest) {
  struct descriptor *in;
  char path[PATH_MAX_BYTES];
  struct stat found;
  uint8_t *to = at(guest, arg32(guest, 4), 64);
  uint16_t error = directory_of(guest, 0, false, &in);
  if (error == E_OK) error = path_of(guest, 2, path);
  if (error != E_OK) return error;
  if (to == NULL) return E_FAULT;
  uint64_t follow = arg32(guest, 1) & LOOKUP_FOLLOW ? 0 : O_NOFOLLOW;
  int fd = open_beneath(in->fd, path, O_PATH | O_CLOEXEC | follow, 0);
  if (fd < 0) return errno_to_wasi(errno);
  int failed = fstat(fd, &found) != 0 ? errno : 0;
  close(fd);
  if (failed) return errno_to_wasi(failed);
  filestat_put(to, &found);
  return E_OK;
}

static uint16_t path_readlink(struct guest *guest) {
  struct descriptor *in;
  char path[PATH_MAX_BYTES];
  const char *last;
  uint32_t room = arg32(guest, 4);
  uint8_t *to = at(guest, arg32(guest, 3), room);
  uint16_t error = directory_of(guest, 0, false, &in);
  if (error == E_OK) error = path_of(guest, 1, path);
  if (error != E_OK) return error;
  if (to == NULL) return E_FAULT;
  int parent = open_parent(in->fd, path, false, &last);
  if (parent < 0) return errno_to_wasi(errno);
  ssize_t size = readlinkat(parent, last, (char *)to, room);
  int failed = size < 0 ? errno : 0;
  close(parent);
  return failed ? errno_to_wasi(failed) : put_u32(guest, arg32(guest, 5), (uint32_t)size);
}

/* What changes one name in a directory: mkdir, rmdir, unlink. */
static uint16_t change(struct guest *guest, int (*make)(int parent, const char *last)) {
  struct descriptor *in;
  char path[PATH_MAX_BYTES];
  const char *last;
  uint16_t error = directory_of(guest, 0, true, &in);
  if (error == E_OK) error = path_of(guest, 1, path);
  if (error != E_OK) return error;
  int parent = open_parent(in->fd, path, false, &last);
  if (parent < 0) return errno_to_wasi(errno);
  int failed = make(parent, last) != 0 ? errno : 0;
  close(parent);
  return failed ? errno_to_wasi(failed) : E_OK;
}

static int make_directory(int parent, const char *last) { return mkdirat(parent, last, 0755); }
static int remove_directory(int parent, const char *last) { return unlinkat(parent, last, AT_REMOVEDIR); }
static int remove_file(int parent, const char *last) { return unlinkat(parent, last, 0); }

static uint16_t path_create_directory(struct guest *guest) { return change(guest, make_directory); }
static uint16_t path_remove_directory(struct guest *guest) { return change(guest, remove_directory); }
static uint16_t path_unlink_file(struct guest *guest) { return change(guest, remove_file); }

static uint16_t path_rename(struct guest *guest) {
  struct descriptor *from, *to;
  char old_path[PATH_MAX_BYTES], new_path[PATH_MAX_BYTES];
  const char *old_last, *new_last;
  uint16_t error = directory_of(guest, 0, true, &from);
  if (error == E_OK) error = directory_of(guest, 3, true, &to);
  if (error == E_OK) error = path_of(guest, 1, old_path);
  if (error == E_OK) error = path_of(guest, 4, new_path);
  if (error != E_OK) return error;
  int old_parent = open_parent(from->fd, old_path, false, &old_last);
  if (old_parent < 0) return errno_to_wasi(errno);
  int new_parent = open_parent(to->fd, new_path, false, &new_last);
  int failed = new_parent < 0 || renameat(old_parent, old_last, new_parent, new_last) != 0 ? errno : 0;
  if (new_parent >= 0) close(new_parent);
  close(old_parent);
  return failed ? errno_to_wasi(failed) : E_OK;
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
