/* Trees in. Every path is walked from the base directory one segment at a time without following anything, so
 * neither a symlink nor "..", nor a rename beside us, leads out; a new file is always a new inode, so a hard link
 * that somebody laid out is never written through. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "agent.h"

#define PROC_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572

struct put {
    struct stream stream;
    int base, parent, file;
    char parent_path[PATH_BYTES_MAX]; /* of `parent`, which is kept for the next entry */
    char name[256];                   /* of `file` below `parent`, while it is not complete */
    bool exact;
    uint64_t left, entries, bytes;
    uint32_t owed;
};

void file_error(uint32_t stream, uint32_t code, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    send_sentence(T_FILE_ERROR, stream, &code, sizeof code, text);
}

void file_errno(uint32_t stream, int error, const char *path) {
    switch (error) {
    case ENOENT: file_error(stream, FILE_NOT_FOUND, "no such file or directory: \"%.300s\"", path); break;
    case ENOSPC:
    case EDQUOT: file_error(stream, FILE_NO_SPACE, "no space left for \"%.300s\"", path); break;
    case EFBIG: file_error(stream, FILE_TOO_LARGE, "\"%.300s\" is larger than a file may be here", path); break;
    case EACCES:
    case EPERM:
    case EROFS: file_error(stream, FILE_DENIED, "\"%.300s\": %s", path, strerror(error)); break;
    case ELOOP:
    case ENOTDIR:
        file_error(stream, FILE_REFUSED, "\"%.300s\": a part of its path is not a directory (or is a symlink)", path);
        break;
    default: file_error(stream, FILE_FAILED, "\"%.300s\": %s", path, strerror(error));
    }
}

/* Files of the kernel are not content, and some are ours alone to read. */
bool is_kernel_file_system(int fd) {
    struct statfs fs;
    return fstatfs(fd, &fs) < 0 || fs.f_type == PROC_MAGIC || fs.f_type == SYSFS_MAGIC;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void end_put(struct put *p) {
    if (p->file >= 0)
        unlinkat(p->parent >= 0 ? p->parent : p->base, p->name, 0); /* half a file is worse than none */
    close_fd(&p->file);
    close_fd(&p->parent);
    close_fd(&p->base);
    stream_remove(&p->stream);
}

static void fail_put(struct put *p, int error, const char *path) {
    file_errno(p->stream.id, error, path);
    end_put(p);
}

static void make_directories(const char *path) {
    char partial[PATH_BYTES_MAX];
    if (strlen(path) >= sizeof partial)
        return;
    for (size_t i = 1; path[i - 1]; i++)
        if (path[i] == '/' || path[i] == 0) {
            memcpy(partial, path, i);
            partial[i] = 0;
            mkdir(partial, 0755); /* what is missing in the end, opening it tells */
        }
}

void on_put(const struct frame *f) {
    struct reader r = reader_of(f);
    uint8_t flags = read_u8(&r);
    char *path = read_string(&r);
    if (!reader_done(&r))
        violation("a malformed PUT");
    struct put *p = must_alloc(sizeof *p);
    p->parent = p->file = -1;
    stream_add(&p->stream, f->stream, STREAM_PUT);
    if (flags & PUT_MAKE_BASE)
        make_directories(path);
    p->base = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (p->base < 0)
        fail_put(p, errno, path);
    else if (is_kernel_file_system(p->base)) {
        file_error(f->stream, FILE_REFUSED, "\"%.300s\" belongs to the kernel", path);
        end_put(p);
    }
}

/* The directory of `path`, made where it is missing; -1 and errno. */
static int open_parent(struct put *p, const char *path) {
    const char *name = strrchr(path, '/');
    size_t length = name ? (size_t)(name - path) : 0;
    if (name == NULL)
        return p->base;
    if (p->parent >= 0 && strlen(p->parent_path) == length && memcmp(p->parent_path, path, length) == 0)
        return p->parent;
    close_fd(&p->parent);
    memcpy(p->parent_path, path, length);
    p->parent_path[length] = 0;
    int at = p->base;
    for (char *segment = p->parent_path; segment;) {
        char *slash = strchr(segment, '/');
        if (slash)
            *slash = 0;
        int next = openat(at, segment, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0 && errno == ENOENT && mkdirat(at, segment, 0755) == 0)
            next = openat(at, segment, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int error = errno;
        if (at != p->base)
            close(at);
        if (slash)
            *slash++ = '/';
        errno = error;
        if (next < 0)
            return -1;
        at = next;
        segment = slash;
    }
    if (is_kernel_file_system(at)) {
        close(at);
        errno = EPERM;
        return -1;
    }
    return p->parent = at;
}

/* errno, or 0. */
static int make_entry(struct put *p, const struct entry_request *e, int parent, const char *name) {
    struct stat there;
    if (e->kind == ENTRY_DIRECTORY) {
        if (mkdirat(parent, name, 0755) == 0)
            return 0;
        int error = errno;
        if (error == EEXIST && fstatat(parent, name, &there, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(there.st_mode))
            return 0;
        return error;
    }
    if (unlinkat(parent, name, 0) < 0 && errno != ENOENT)
        return errno;
    if (e->kind == ENTRY_SYMLINK)
        return symlinkat(e->target, parent, name) < 0 ? errno : 0;
    p->file = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, e->executable ? 0755 : 0644);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->exact = e->size != SIZE_UNKNOWN;
    p->left = e->size;
    return p->file < 0 ? errno : 0;
}

/* False: the stream has ended. */
static bool end_file(struct put *p) {
    if (p->file < 0)
        return true;
    if (p->exact && p->left) {
        file_error(p->stream.id, FILE_REFUSED, "the content of \"%s\" is shorter than its entry says", p->name);
        end_put(p);
        return false;
    }
    close_fd(&p->file);
    return true;
}

static void grant(struct put *p, uint32_t bytes) {
    p->owed += bytes;
    if (p->owed >= WINDOW_BYTES / 2) {
        send_u32(T_CREDIT, p->stream.id, p->owed);
        p->owed = 0;
    }
}

static void on_entry(struct put *p, const struct frame *f) {
    struct entry_request e;
    if (!decode_entry(f, &e))
        violation("a malformed ENTRY");
    if (!end_file(p))
        return;
    if (!path_allowed(e.path)) {
        file_error(p->stream.id, FILE_REFUSED, "the path \"%.300s\" is not allowed in a tree", e.path);
        end_put(p);
        return;
    }
    const char *slash = strrchr(e.path, '/');
    int parent = open_parent(p, e.path);
    int error = parent < 0 ? errno : make_entry(p, &e, parent, slash ? slash + 1 : e.path);
    if (error) {
        fail_put(p, error, e.path);
        return;
    }
    if (slash == NULL)
        close_fd(&p->parent); /* end_put() then finds the file below the base */
    p->entries++;
    grant(p, f->length);
}

static void on_content(struct put *p, const struct frame *f) {
    if (p->file < 0)
        violation("content without a file");
    if (p->exact && f->length > p->left) {
        file_error(p->stream.id, FILE_REFUSED, "the content of \"%s\" is longer than its entry says", p->name);
        end_put(p);
        return;
    }
    for (uint32_t done = 0; done < f->length;) {
        ssize_t n = write(p->file, f->payload + done, f->length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            fail_put(p, n < 0 ? errno : EIO, p->name);
            return;
        }
        done += (uint32_t)n;
    }
    p->left -= p->exact ? f->length : 0;
    p->bytes += f->length;
    grant(p, f->length);
}

void on_put_frame(struct stream *s, const struct frame *f) {
    struct put *p = (struct put *)s;
    uint64_t done[2];
    switch (f->type) {
    case T_ENTRY: on_entry(p, f); break;
    case T_DATA: on_content(p, f); break;
    case T_ABANDON: end_put(p); break;
    case T_PUT_END:
        if (!end_file(p))
            return;
        done[0] = p->entries;
        done[1] = p->bytes;
        send_frame(T_DONE, s->id, done, sizeof done);
        end_put(p);
        break;
    default: violation("a frame that no PUT takes");
    }
}

void free_put(struct stream *s) { free(s); }
