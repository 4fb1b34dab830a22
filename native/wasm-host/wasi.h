/* What the parts of WASI share: a guest's call of the host, its arguments and its memory. Functions of WASI give WASI
 * error numbers; what they make goes to addresses of the guest, which are checked. */
#ifndef CORRAL_WASM_HOST_WASI_H
#define CORRAL_WASM_HOST_WASI_H

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

static inline uint8_t *at(struct guest *guest, uint32_t address, uint64_t size) {
  return address <= guest->size && size <= guest->size - address ? guest->memory + address : NULL;
}

static inline uint32_t arg32(const struct guest *guest, int n) { return (uint32_t)guest->values[n].i32; }
static inline uint64_t arg64(const struct guest *guest, int n) { return (uint64_t)guest->values[n].i64; }

static inline uint16_t put_u32(struct guest *guest, uint32_t address, uint32_t value) {
  uint8_t *to = at(guest, address, 4);
  if (to == NULL) return E_FAULT;
  put32(to, value);
  return E_OK;
}

static inline struct descriptor *descriptor_of(struct guest *guest, uint32_t fd) {
  if (fd >= DESCRIPTORS_MAX || guest->call->descriptors[fd].kind == FD_FREE) return NULL;
  return &guest->call->descriptors[fd];
}

/* wasi_descriptors.c */
uint16_t fd_close(struct guest *guest);
uint16_t fd_fdstat_get(struct guest *guest);
uint16_t fd_fdstat_set_flags(struct guest *guest);
uint16_t fd_fdstat_set_rights(struct guest *guest);
uint16_t fd_filestat_get(struct guest *guest);
uint16_t fd_prestat_get(struct guest *guest);
uint16_t fd_prestat_dir_name(struct guest *guest);
uint16_t fd_seek(struct guest *guest);
uint16_t fd_tell(struct guest *guest);
uint16_t fd_sync(struct guest *guest);
uint16_t fd_advise(struct guest *guest);
uint16_t fd_filestat_set_size(struct guest *guest);
uint16_t fd_renumber(struct guest *guest);
uint16_t fd_readdir(struct guest *guest);
uint16_t path_open(struct guest *guest);
uint16_t path_filestat_get(struct guest *guest);
uint16_t path_readlink(struct guest *guest);
uint16_t path_create_directory(struct guest *guest);
uint16_t path_remove_directory(struct guest *guest);
uint16_t path_unlink_file(struct guest *guest);
uint16_t path_rename(struct guest *guest);

#endif
