/* Paths that a guest names stay below the directory that it was given: the kernel resolves them (openat2 with
 * RESOLVE_BENEATH), so "..", absolute links and races with a renaming neighbour all end in an error. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host.h"

int open_beneath(int directory, const char *path, uint64_t flags, uint64_t mode) {
  struct open_how how = {.flags = flags, .mode = mode,
                         .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
  return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

/* The directory that holds the last name of `path`, which is cut in place: what follows acts on the name itself and
 * never on what a link there points to. "." and ".." are no names, and "name/" is the directory name. */
int open_parent(int directory, const char *path, bool follow_dots, const char **last) {
  char *cut = (char *)path;
  size_t size = strlen(cut);
  while (size > 1 && cut[size - 1] == '/') cut[--size] = 0;
  char *slash = strrchr(cut, '/');
  *last = slash == NULL ? cut : slash + 1;
  if (!follow_dots && (strcmp(*last, ".") == 0 || strcmp(*last, "..") == 0 || **last == 0)) {
    errno = EINVAL;
    return -1;
  }
  if (slash == NULL) return open_beneath(directory, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  *slash = 0;
  return open_beneath(directory, path[0] ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
}

uint16_t errno_to_wasi(int number) {
  switch (number) {
    case EACCES: return 2;
    case EAGAIN: return 6;
    case EBADF: return 8;
    case EBUSY: return 10;
    case EDQUOT: return 19;
    case EEXIST: return 20;
    case EFBIG: return 22;
    case EINTR: return 27;
    case EINVAL: return 28;
    case EISDIR: return 31;
    case ELOOP: return 32;
    case EMFILE: case ENFILE: return 33;
    case EMLINK: return 34;
    case ENAMETOOLONG: return 37;
    case ENOENT: return 44;
    case ENOMEM: return 48;
    case ENOSPC: return 51;
    case ENOTDIR: return 54;
    case ENOTEMPTY: return 55;
    case ENXIO: return 60;
    case EPERM: return 63;
    case EROFS: return 69;
    case ESPIPE: return 70;
    case EXDEV: return 76; /* beyond the directory: not capable */
    default: return 29;
  }
}
