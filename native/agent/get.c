/* Trees out: a walk that never follows a symlink, never opens anything but directories and regular files, and stops
 * at the limits of the request. It goes on as the host gives credit. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "agent.h"

struct get {
    struct stream stream;
    uint64_t bytes_left, entries_left, file_max, sent_entries, sent_bytes;
    uint32_t depth_max, credit, depth;
    DIR *open[DEPTH_MAX + 1];
    size_t path_length[DEPTH_MAX + 1]; /* of the path of open[i] */
    char path[PATH_BYTES_MAX];         /* relative, of what is being sent */
    int file;
    uint64_t file_left;
    bool starved;
};

static size_t starving;

size_t gets_starved(void) { return starving; }

static void set_starved(struct get *g, bool starved) {
    starving += starved;
    starving -= g->starved;
    g->starved = starved;
}

static void end_get(struct get *g) {
    while (g->depth)
        closedir(g->open[--g->depth]);
    if (g->file >= 0)
        close(g->file);
    g->file = -1;
    set_starved(g, false);
    stream_remove(&g->stream);
}

static void fail_get(struct get *g, int error, const char *path) {
    file_errno(g->stream.id, error, *path ? path : "the file");
    end_get(g);
}

static int kind_of(mode_t mode) {
    return S_ISREG(mode) ? ENTRY_FILE : S_ISDIR(mode) ? ENTRY_DIRECTORY : S_ISLNK(mode) ? ENTRY_SYMLINK : -1;
}

static uint32_t put_string(uint8_t *at, const char *text) {
    uint32_t length = (uint32_t)strlen(text) + 1;
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(length >> (8 * i));
    memcpy(at + 4, text, length);
    return 4 + length;
}

static uint32_t send_entry(uint32_t stream, int kind, const struct stat *status, const char *path, const char *target) {
    uint8_t *at = reserve_payload(2 * PATH_BYTES_MAX + 32);
    uint64_t size = kind == ENTRY_FILE ? (uint64_t)status->st_size : 0;
    at[0] = (uint8_t)kind;
    at[1] = kind == ENTRY_FILE && (status->st_mode & 0111);
    for (int i = 0; i < 8; i++)
        at[2 + i] = (uint8_t)(size >> (8 * i));
    uint32_t length = 10 + put_string(at + 10, path);
    length += put_string(at + length, target);
    send_reserved(T_ENTRY, stream, length);
    return length;
}

/* Opens without side effects and without a race: a fifo does not block, a device is never opened. -1 and errno. */
static int open_regular(int at, const char *name, struct stat *status) {
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, status) < 0 || !S_ISREG(status->st_mode) || is_kernel_file_system(fd)) {
        close(fd);
        errno = EPERM;
        return -1;
    }
    return fd;
}

static bool push_directory(struct get *g, int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = NULL;
    if (fd >= 0 && is_kernel_file_system(fd))
        errno = EPERM;
    else if (fd >= 0)
        directory = fdopendir(fd);
    if (directory == NULL) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        errno = error;
        return false;
    }
    g->path_length[g->depth] = strlen(g->path);
    g->open[g->depth++] = directory;
    return true;
}

/* One entry: told to the host, and opened when there is something in it. False: the stream has ended. */
static bool visit(struct get *g, int at, const char *name, bool told) {
    struct stat status;
    char target[PATH_BYTES_MAX] = "";
    if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
        fail_get(g, errno, g->path);
        return false;
    }
    int kind = kind_of(status.st_mode);
    if (kind < 0) {
        file_error(g->stream.id, FILE_REFUSED, "\"%.300s\" is a device, fifo or socket", *g->path ? g->path : name);
        end_get(g);
        return false;
    }
    const char *over = NULL;
    if (kind == ENTRY_FILE && (g->file = open_regular(at, name, &status)) < 0) {
        fail_get(g, errno, g->path);
        return false;
    }
    uint64_t size = kind == ENTRY_FILE ? (uint64_t)status.st_size : 0;
    if (told && g->entries_left == 0)
        over = "the tree has more entries than allowed";
    else if (kind == ENTRY_DIRECTORY && g->depth > g->depth_max)
        over = "the tree is deeper than allowed";
    else if (size > g->file_max)
        over = "the file is larger than allowed";
    else if (size > g->bytes_left)
        over = "the tree is larger than allowed";
    if (over) {
        file_error(g->stream.id, FILE_TOO_LARGE, "\"%.300s\": %s", *g->path ? g->path : name, over);
        end_get(g);
        return false;
    }
    if ((kind == ENTRY_SYMLINK && readlinkat(at, name, target, sizeof target - 1) < 0) ||
        (kind == ENTRY_DIRECTORY && !push_directory(g, at, name))) {
        fail_get(g, errno, g->path);
        return false;
    }
    g->bytes_left -= size;
    g->file_left = size;
    if (told) {
        uint32_t length = send_entry(g->stream.id, kind, &status, g->path, target);
        g->credit -= length < g->credit ? length : g->credit;
        g->entries_left--;
        g->sent_entries++;
    }
    if (kind == ENTRY_FILE && size == 0) {
        close(g->file);
        g->file = -1;
    }
    return true;
}

static bool send_content(struct get *g) {
    uint32_t most = g->credit < DATA_BYTES_MAX ? g->credit : DATA_BYTES_MAX;
    if (most > g->file_left)
        most = (uint32_t)g->file_left;
    ssize_t n = read(g->file, reserve_payload(most), most);
    if (n < 0 && errno == EINTR)
        return true;
    if (n <= 0) {
        file_error(g->stream.id, FILE_FAILED, "\"%.300s\" changed while it was read", g->path);
        end_get(g);
        return false;
    }
    send_reserved(T_DATA, g->stream.id, (uint32_t)n);
    g->credit -= (uint32_t)n;
    g->sent_bytes += (uint64_t)n;
    if ((g->file_left -= (uint64_t)n) == 0) {
        close(g->file);
        g->file = -1;
    }
    return true;
}

static bool next_entry(struct get *g) {
    DIR *directory = g->open[g->depth - 1];
    size_t length = g->path_length[g->depth - 1];
    errno = 0;
    struct dirent *entry = readdir(directory);
    if (entry == NULL && errno) {
        fail_get(g, errno, g->path);
        return false;
    }
    if (entry == NULL) {
        closedir(directory);
        g->depth--;
        return true;
    }
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
        return true;
    int wrote = snprintf(g->path + length, sizeof g->path - length, "%s%s", length ? "/" : "", entry->d_name);
    if ((size_t)wrote >= sizeof g->path - length) {
        g->path[length] = 0;
        file_error(g->stream.id, FILE_TOO_LARGE, "a path below \"%.200s\" is longer than allowed", g->path);
        end_get(g);
        return false;
    }
    return visit(g, dirfd(directory), entry->d_name, true);
}

static void pump_get(struct get *g) {
    set_starved(g, false);
    while (g->credit) {
        if (link_queued() > OUT_HIGH_BYTES) {
            set_starved(g, true);
            return;
        }
        if (g->file >= 0) {
            if (!send_content(g))
                return;
        } else if (g->depth) {
            if (!next_entry(g))
                return;
        } else {
            uint64_t done[2] = {g->sent_entries, g->sent_bytes};
            send_frame(T_DONE, g->stream.id, done, sizeof done);
            end_get(g);
            return;
        }
    }
}

void resume_get(struct stream *s) {
    if (s->kind == STREAM_GET && ((struct get *)s)->starved)
        pump_get((struct get *)s);
}

void on_get(const struct frame *f) {
    struct get_request r;
    struct stat status;
    if (!decode_get(f, &r))
        violation("a malformed GET");
    struct get *g = must_alloc(sizeof *g);
    g->bytes_left = r.total_bytes;
    g->entries_left = r.entries;
    g->file_max = r.file_bytes;
    g->depth_max = r.depth;
    g->credit = WINDOW_BYTES;
    g->file = -1;
    stream_add(&g->stream, f->stream, STREAM_GET);
    if (fstatat(AT_FDCWD, r.path, &status, AT_SYMLINK_NOFOLLOW) < 0) {
        fail_get(g, errno, r.path);
        return;
    }
    /* a directory itself is not an entry of its tree; anything else is told with the path "" */
    if (visit(g, AT_FDCWD, r.path, !S_ISDIR(status.st_mode)))
        pump_get(g);
}

void on_get_frame(struct stream *s, const struct frame *f) {
    struct get *g = (struct get *)s;
    struct reader r = reader_of(f);
    if (f->type == T_ABANDON) {
        end_get(g);
        return;
    }
    uint32_t bytes = read_u32(&r);
    if (f->type != T_CREDIT || !reader_done(&r))
        violation("a frame that no GET takes");
    g->credit = bytes > WINDOW_BYTES - g->credit ? WINDOW_BYTES : g->credit + bytes;
    pump_get(g);
}

void free_get(struct stream *s) { free(s); }

static char *path_of(const struct frame *f) {
    struct reader r = reader_of(f);
    char *path = read_string(&r);
    if (!reader_done(&r))
        violation("a malformed path");
    return path;
}

void on_stat(const struct frame *f) {
    struct stat status;
    char target[PATH_BYTES_MAX] = "";
    char *path = path_of(f);
    if (fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) < 0) {
        file_errno(f->stream, errno, path);
        return;
    }
    int kind = kind_of(status.st_mode);
    if (kind < 0) {
        file_error(f->stream, FILE_REFUSED, "\"%.300s\" is a device, fifo or socket", path);
        return;
    }
    if (kind == ENTRY_SYMLINK && readlink(path, target, sizeof target - 1) < 0) {
        file_errno(f->stream, errno, path);
        return;
    }
    uint64_t done[2] = {1, 0};
    send_entry(f->stream, kind, &status, "", target);
    send_frame(T_DONE, f->stream, done, sizeof done);
}

void on_space(const struct frame *f) {
    struct statvfs fs;
    char *path = path_of(f);
    if (statvfs(path, &fs) < 0) {
        file_errno(f->stream, errno, path);
        return;
    }
    uint64_t space[4] = {fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize, fs.f_files, fs.f_favail};
    send_frame(T_SPACE_IS, f->stream, space, sizeof space);
}
