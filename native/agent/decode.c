/* Bytes to values. Pure: no I/O, no global state; strings point into the frame. The fuzz target drives all of it. */
#include <stdlib.h>
#include <string.h>

#include "agent.h"

static uint64_t read_number(struct reader *r, size_t bytes) {
    uint64_t number = 0;
    if (r->bad || (size_t)(r->end - r->at) < bytes) {
        r->bad = true;
        return 0;
    }
    for (size_t i = 0; i < bytes; i++)
        number |= (uint64_t)r->at[i] << (8 * i);
    r->at += bytes;
    return number;
}

uint8_t read_u8(struct reader *r) { return (uint8_t)read_number(r, 1); }
uint16_t read_u16(struct reader *r) { return (uint16_t)read_number(r, 2); }
uint32_t read_u32(struct reader *r) { return (uint32_t)read_number(r, 4); }
uint64_t read_u64(struct reader *r) { return read_number(r, 8); }

static uint8_t *read_blob(struct reader *r, uint32_t *length) {
    *length = read_u32(r);
    if (r->bad || (size_t)(r->end - r->at) < *length) {
        r->bad = true;
        *length = 0;
        return NULL;
    }
    uint8_t *blob = r->at;
    r->at += *length;
    return blob;
}

char *read_string(struct reader *r) {
    uint32_t length;
    char *text = (char *)read_blob(r, &length);
    if (r->bad || length == 0 || memchr(text, 0, length) != text + length - 1) {
        r->bad = true;
        return NULL;
    }
    return text;
}

bool reader_done(const struct reader *r) { return !r->bad && r->at == r->end; }

struct reader reader_of(const struct frame *f) { return (struct reader){f->payload, f->payload + f->length, false}; }

int cut_frame(uint8_t *at, uint8_t *end, struct frame *frame, size_t *used) {
    struct reader r = {at, end, false};
    if (end - at < FRAME_HEADER_BYTES)
        return 0;
    frame->length = read_u32(&r);
    frame->stream = read_u32(&r);
    frame->type = read_u8(&r);
    frame->payload = r.at;
    bool large = frame->type == T_SETUP || frame->type == T_EXEC;
    if (frame->length > (large ? FRAME_PAYLOAD_MAX : DATA_BYTES_MAX) || frame->type >= T_READY || frame->stream == 0)
        return -1;
    *used = FRAME_HEADER_BYTES + (size_t)frame->length;
    return (size_t)(end - at) >= *used;
}

/* A count of things that take at least `least` bytes each: never more than the payload can hold. */
static uint32_t read_count(struct reader *r, size_t least) {
    uint32_t count = read_u32(r);
    if (r->bad || count > (size_t)(r->end - r->at) / least) {
        r->bad = true;
        return 0;
    }
    return count;
}

static void *array_of(struct reader *r, size_t count, size_t size) {
    void *array = calloc(count ? count : 1, size);
    if (array == NULL)
        r->bad = true;
    return array;
}

bool decode_setup(const struct frame *frame, struct setup_request *s) {
    struct reader r = reader_of(frame);
    memset(s, 0, sizeof *s);
    s->version = read_u32(&r);
    s->flags = read_u32(&r);
    s->grace_ms = read_u32(&r);
    s->host_name = read_string(&r);
    s->mounts = read_count(&r, 22);
    if ((s->mount = array_of(&r, s->mounts, sizeof *s->mount)) != NULL)
        for (uint32_t i = 0; i < s->mounts; i++) {
            s->mount[i].fresh = read_u8(&r);
            s->mount[i].size_bytes = read_u64(&r);
            s->mount[i].files = read_u64(&r);
            s->mount[i].path = read_string(&r);
        }
    s->folders = read_count(&r, 5);
    if ((s->folder = array_of(&r, s->folders, sizeof *s->folder)) != NULL)
        for (uint32_t i = 0; i < s->folders; i++)
            s->folder[i] = read_string(&r);
    s->limits = read_count(&r, 20);
    if ((s->limit = array_of(&r, s->limits, sizeof *s->limit)) != NULL)
        for (uint32_t i = 0; i < s->limits; i++)
            s->limit[i] = (struct limit_request){read_u32(&r), read_u64(&r), read_u64(&r)};
    s->seccomp = read_blob(&r, &s->seccomp_bytes);
    if (s->seccomp_bytes % 8)
        r.bad = true;
    return reader_done(&r);
}

void free_setup(struct setup_request *s) {
    free(s->mount);
    free(s->folder);
    free(s->limit);
}

static char **read_strings(struct reader *r, uint32_t least) {
    uint32_t count = read_count(r, 5);
    if (count < least)
        r->bad = true;
    char **strings = array_of(r, (size_t)count + 1, sizeof *strings);
    if (strings != NULL)
        for (uint32_t i = 0; i < count; i++)
            if ((strings[i] = read_string(r)) == NULL)
                break;
    return strings;
}

bool decode_exec(const struct frame *frame, struct exec_request *e) {
    struct reader r = reader_of(frame);
    memset(e, 0, sizeof *e);
    e->flags = read_u8(&r);
    e->rows = read_u16(&r);
    e->columns = read_u16(&r);
    e->uid = read_u32(&r);
    e->gid = read_u32(&r);
    e->cwd = read_string(&r);
    e->argv = read_strings(&r, 1);
    e->env = read_strings(&r, 0);
    return reader_done(&r);
}

void free_exec(struct exec_request *e) {
    free(e->argv);
    free(e->env);
}

bool decode_entry(const struct frame *frame, struct entry_request *e) {
    struct reader r = reader_of(frame);
    e->kind = read_u8(&r);
    e->executable = read_u8(&r);
    e->size = read_u64(&r);
    e->path = read_string(&r);
    e->target = read_string(&r);
    return reader_done(&r) && e->kind <= ENTRY_SYMLINK;
}

bool decode_get(const struct frame *frame, struct get_request *g) {
    struct reader r = reader_of(frame);
    g->total_bytes = read_u64(&r);
    g->entries = read_u64(&r);
    g->file_bytes = read_u64(&r);
    g->depth = read_u32(&r);
    g->path = read_string(&r);
    return reader_done(&r) && g->depth <= DEPTH_MAX;
}

bool decode_reseed(const struct frame *frame, struct reseed_request *s) {
    struct reader r = reader_of(frame);
    s->unix_ns = read_u64(&r);
    s->host_name = read_string(&r);
    s->entropy = read_blob(&r, &s->entropy_bytes);
    return reader_done(&r) && s->entropy_bytes <= RESEED_BYTES_MAX;
}

/* Relative, no empty, "." or ".." segment, bounded. */
bool path_allowed(const char *path) {
    unsigned depth = 0;
    if (strlen(path) >= PATH_BYTES_MAX)
        return false;
    for (;;) {
        size_t segment = strcspn(path, "/");
        if (segment == 0 || segment > 255 || ++depth > DEPTH_MAX)
            return false;
        if (path[0] == '.' && (segment == 1 || (segment == 2 && path[1] == '.')))
            return false;
        if (path[segment] == 0)
            return true;
        path += segment + 1;
    }
}
