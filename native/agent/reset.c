/* RESET: as good as new, or an honest no. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define PATIENCE_US 1000000
#define DEPTH_LIMIT 100000

struct listing { /* struct linux_dirent64, which libc hides */
    uint64_t inode, offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

#include <sys/syscall.h>

static bool is_dots(const char *name) { return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0)); }

/* Into the directory `name`; the current one is closed. Nothing runs beside us, so ".." leads back. -1 and errno. */
static int descend(int at, const char *name, dev_t device) {
    struct stat status;
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(at, name, flags);
    if (fd < 0 && errno == EACCES && fchmodat(at, name, 0700, 0) == 0)
        fd = openat(at, name, flags);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) < 0 || status.st_dev != device) {
        close(fd);
        errno = EXDEV;
        return -1;
    }
    fchmod(fd, 0700);
    close(at);
    return fd;
}

/* 0: removed. 1: a directory that is not empty. -1: errno. */
static int remove_entry(int at, const char *name) {
    if (unlinkat(at, name, 0) == 0)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -1;
    if (unlinkat(at, name, AT_REMOVEDIR) == 0)
        return 0;
    return errno == ENOTEMPTY || errno == EEXIST ? 1 : -1;
}

/* Removes what can be removed at once. 0: nothing is left here. 1: `name` is a full directory. -1: errno. */
static int remove_all(int at, char name[256]) {
    static char buffer[32768] __attribute__((aligned(8)));
    long n;
    while ((n = syscall(SYS_getdents64, at, buffer, sizeof buffer)) > 0)
        for (long i = 0; i < n;) {
            struct listing *entry = (struct listing *)(buffer + i);
            i += entry->length;
            if (is_dots(entry->name))
                continue;
            int result = remove_entry(at, entry->name);
            if (result) {
                snprintf(name, 256, "%s", entry->name);
                return result;
            }
        }
    return n < 0 ? -1 : 0;
}

/* Nearly always it is: then one look through the descriptor that we keep is enough. */
static bool is_empty(int folder) {
    char buffer[1024] __attribute__((aligned(8)));
    long n;
    if (lseek(folder, 0, SEEK_SET) < 0)
        return false;
    while ((n = syscall(SYS_getdents64, folder, buffer, sizeof buffer)) > 0)
        for (long i = 0; i < n; i += ((struct listing *)(buffer + i))->length)
            if (!is_dots(((struct listing *)(buffer + i))->name))
                return false;
    return n == 0;
}

static const char *empty_folder(int folder) {
    struct stat status;
    char name[256] = "";
    unsigned depth = 0;
    int at = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0 || fstat(at, &status) < 0)
        return strerror(errno);
    for (;;) {
        int result = remove_all(at, name);
        if (result == 0 && depth == 0) {
            close(at);
            return NULL;
        }
        int next = -1;
        if (result == 1 && depth < DEPTH_LIMIT && (next = descend(at, name, status.st_dev)) >= 0) {
            depth++;
        } else if (result == 0 && (next = openat(at, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0) {
            depth--;
            close(at);
        } else {
            const char *why = strerror(errno);
            close(at);
            return why;
        }
        at = next;
    }
}

static int kill_leftovers(void) {
    int most = 0;
    uint64_t until = now_us() + PATIENCE_US;
    for (unsigned round = 0; now_us() < until; round++) {
        int live = kill_tree_round(getpid(), round, is_keeper);
        most = live > most ? live : most;
        reap_children();
        if (live <= 0)
            break;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return most;
}

/* System V objects outlive processes; the first line of each list is its heading. */
static bool has_ipc_objects(void) {
    static const char *const lists[] = {"/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"};
    static int fd[] = {-1, -1, -1};
    char text[1024];
    for (int i = 0; i < 3; i++) {
        if (fd[i] < 0)
            fd[i] = open(lists[i], O_RDONLY | O_CLOEXEC);
        ssize_t n = pread(fd[i], text, sizeof text, 0); /* fails in a kernel without them */
        char *line = n > 0 ? memchr(text, '\n', (size_t)n) : NULL;
        if (line && line + 1 < text + n)
            return true;
    }
    return false;
}

bool make_new(char *left, size_t size) {
    char ignored[1];
    if (left == NULL)
        left = ignored, size = sizeof ignored;
    bool clean = false;
    left[0] = 0;
    reap_children();
    if (streams_open())
        snprintf(left, size, "%zu operations are running", streams_open());
    else if (!only_keepers_are_children())
        snprintf(left, size, "%d processes were left", kill_leftovers());
    else if (!spare_keepers_run())
        snprintf(left, size, "a keeper was stopped or killed");
    else if (getpid() == 1 && has_ipc_objects())
        snprintf(left, size, "System V objects were left");
    else
        clean = true;
    for (uint32_t i = 0; clean && i < settings.folders; i++) {
        struct folder *folder = &settings.folder[i];
        const char *why = is_empty(folder->fd) ? NULL : empty_folder(folder->fd);
        if (why) {
            snprintf(left, size, "%s cannot be emptied: %s", folder->path, why);
            clean = false;
        }
        fchmod(folder->fd, folder->mode);
    }
    return clean;
}

void on_reset(const struct frame *f) {
    char left[512];
    uint8_t clean = make_new(left, sizeof left);
    send_sentence(T_RESET_DONE, f->stream, &clean, 1, left);
}
