/* The stream to the host: two buffers. Nothing here blocks; the loop says when. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define IN_BYTES (2 * (DATA_BYTES_MAX + FRAME_HEADER_BYTES))
#define OUT_BYTES 65536

static int fd = -1;
static uint8_t *in, *out;
static size_t in_capacity, in_at, in_have;
static size_t out_capacity, out_at, out_have;

static void *resize(void *memory, size_t bytes) {
    void *grown = realloc(memory, bytes);
    if (grown == NULL)
        violation("out of memory");
    return grown;
}

void link_open(int stream) {
    fd = stream;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    in = resize(in, in_capacity = IN_BYTES);
    out = resize(out, out_capacity = OUT_BYTES);
    in_at = in_have = out_at = out_have = 0;
}

int link_fd(void) { return fd; }

bool link_read(void) {
    ssize_t n = read(fd, in + in_have, in_capacity - in_have);
    if (n > 0)
        in_have += (size_t)n;
    if (n == 0)
        errno = 0; /* the host closed it, which is not a fault of the stream */
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

bool link_next(struct frame *frame) {
    size_t used;
    int found = cut_frame(in + in_at, in + in_have, frame, &used);
    if (found < 0)
        violation("a malformed frame");
    if (found)
        in_at += used;
    else if (in_have - in_at >= FRAME_HEADER_BYTES && used > in_capacity) {
        memmove(in, in + in_at, in_have - in_at);
        in_have -= in_at;
        in_at = 0;
        in = resize(in, in_capacity = used);
    }
    return found;
}

void link_compact(void) {
    in_have -= in_at;
    if (in_have && in_at)
        memmove(in, in + in_at, in_have);
    in_at = 0;
    if (in_have == 0 && in_capacity > IN_BYTES) /* a large EXEC or the SETUP is behind us */
        in = resize(in, in_capacity = IN_BYTES);
}

bool link_flush(void) {
    while (out_at < out_have) {
        ssize_t n = write(fd, out + out_at, out_have - out_at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n <= 0)
            return false;
        out_at += (size_t)n;
    }
    out_at = out_have = 0;
    if (out_capacity > 4 * OUT_BYTES)
        out = resize(out, out_capacity = OUT_BYTES);
    return true;
}

size_t link_queued(void) { return out_have - out_at; }

uint8_t *reserve_payload(uint32_t length) {
    size_t need = FRAME_HEADER_BYTES + (size_t)length;
    if (out_at && out_capacity - out_have < need) {
        memmove(out, out + out_at, out_have - out_at);
        out_have -= out_at;
        out_at = 0;
    }
    if (out_capacity - out_have < need)
        out = resize(out, out_capacity = 2 * (out_have + need));
    return out + out_have + FRAME_HEADER_BYTES;
}

static void put_u32(uint8_t *at, uint32_t number) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(number >> (8 * i));
}

void send_reserved(uint8_t type, uint32_t stream, uint32_t length) {
    uint8_t *head = out + out_have;
    put_u32(head, length);
    put_u32(head + 4, stream);
    head[8] = type;
    out_have += FRAME_HEADER_BYTES + (size_t)length;
}

void send_frame(uint8_t type, uint32_t stream, const void *payload, uint32_t length) {
    uint8_t *at = reserve_payload(length);
    if (length)
        memcpy(at, payload, length);
    send_reserved(type, stream, length);
}

void send_u32(uint8_t type, uint32_t stream, uint32_t number) {
    uint8_t payload[4];
    put_u32(payload, number);
    send_frame(type, stream, payload, sizeof payload);
}

void send_sentence(uint8_t type, uint32_t stream, const void *head, uint32_t head_bytes, const char *sentence) {
    uint32_t length = (uint32_t)strlen(sentence) + 1;
    uint8_t *at = reserve_payload(head_bytes + 4 + length);
    if (head_bytes)
        memcpy(at, head, head_bytes);
    put_u32(at + head_bytes, length);
    memcpy(at + head_bytes + 4, sentence, length);
    send_reserved(type, stream, head_bytes + 4 + length);
}
