/* WASI's descriptors and paths: files and directories below what was pre-opened. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h> /* renameat */
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wasi.h"

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

/* -- descriptors -- */

uint16_t fd_close(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  if (of == NULL) return E_BADF;
  if (of->kind == FD_FILE || of->kind == FD_DIRECTORY) close(of->fd);
  of->kind = FD_FREE;
  return E_OK;
}

uint16_t fd_fdstat_get(struct guest *guest) {
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

uint16_t fd_fdstat_set_flags(struct guest *guest) {
  return descriptor_of(guest, arg32(guest, 0)) == NULL ? E_BADF : E_NOTSUP;
}

uint16_t fd_fdstat_set_rights(struct guest *guest) {
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

uint16_t fd_filestat_get(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, 1), 64);
  struct stat found = {0};
  if (of == NULL) return E_BADF;
  if (to == NULL) return E_FAULT;
  if ((is_directory(of) || of->kind == FD_FILE) && fstat(of->fd, &found) != 0) return errno_to_wasi(errno);
  filestat_put(to, &found);
  return E_OK;
}

uint16_t fd_prestat_get(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  uint8_t *to = at(guest, arg32(guest, 1), 8);
  if (of == NULL || of->kind != FD_PREOPEN) return E_BADF;
  if (to == NULL) return E_FAULT;
  put32(to, 0);
  put32(to + 4, (uint32_t)strlen(guest->call->program->preopens[of->preopen].guest));
  return E_OK;
}

uint16_t fd_prestat_dir_name(struct guest *guest) {
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

uint16_t fd_seek(struct guest *guest) {
  return seek_to(guest, guest->values[1].i64, arg32(guest, 2), 3);
}

uint16_t fd_tell(struct guest *guest) { return seek_to(guest, 0, 1, 1); }

uint16_t fd_sync(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  return of == NULL ? E_BADF : of->kind == FD_FILE ? E_OK : E_INVAL; /* files outlive nothing here: no disk waits */
}

uint16_t fd_advise(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  return of == NULL ? E_BADF : of->kind == FD_FILE ? E_OK : E_SPIPE;
}

uint16_t fd_filestat_set_size(struct guest *guest) {
  struct descriptor *of = descriptor_of(guest, arg32(guest, 0));
  if (of == NULL || of->kind != FD_FILE || !of->writable) return E_BADF;
  if (arg64(guest, 1) > INT64_MAX) return E_INVAL;
  return ftruncate(of->fd, (off_t)arg64(guest, 1)) == 0 ? E_OK : errno_to_wasi(errno);
}

uint16_t fd_renumber(struct guest *guest) {
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

uint16_t fd_readdir(struct guest *guest) {
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

uint16_t path_open(struct guest *guest) {
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

uint16_t path_filestat_get(struct guest *guest) {
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

uint16_t path_readlink(struct guest *guest) {
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

uint16_t path_create_directory(struct guest *guest) { return change(guest, make_directory); }
uint16_t path_remove_directory(struct guest *guest) { return change(guest, remove_directory); }
uint16_t path_unlink_file(struct guest *guest) { return change(guest, remove_file); }

uint16_t path_rename(struct guest *guest) {
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
