/* Process 1 while its agent lives. The agent has sealed itself; what it cannot do any more it asks for here, over a
 * socket that nothing but the agent has: a new stream when a snapshot has reset the old one, and, in a copy of a
 * machine that was frozen, time, randomness and names of its own. A message is one byte (../agent/agent.h, enum
 * steward_order) and, for the second, the payload of a RESEED frame (../agent/protocol.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

#define ORDER_STREAM 0
#define ORDER_RESEED 1
#define MESSAGE_BYTES_MAX 2048
#define ID_BYTES 36
#define IDS "/ids"
#define BOOT_ID IDS "/boot"
#define MACHINE_ID IDS "/machine"

static int id_files[2]; /* open from the beginning: a copy that has just been woken opens nothing for the first time */

void make_ids(void) {
    mkdir(IDS, 0755);
    id_files[0] = open(BOOT_ID, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
    id_files[1] = open(MACHINE_ID, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
    if (id_files[0] < 0 || id_files[1] < 0 || !renew_ids())
        die("cannot make", "the ids of this machine");
}

/* Random, in the form of version 4 of RFC 9562; a machine id is one without its dashes (machine-id(5)). */
static size_t write_uuid(char *to, bool dashes) {
    static const char digits[] = "0123456789abcdef";
    uint8_t bytes[16];
    char *at = to;
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        return 0;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    for (int i = 0; i < 16; i++) {
        if (dashes && (i == 4 || i == 6 || i == 8 || i == 10))
            *at++ = '-';
        *at++ = digits[bytes[i] >> 4];
        *at++ = digits[bytes[i] & 15];
    }
    *at++ = '\n';
    return (size_t)(at - to);
}

/* The kernel keeps the boot id that it once made; a copy of this machine must not have the same. Into the same files,
 * for they are bound over what programs read. */
bool renew_ids(void) {
    for (int i = 0; i < 2; i++) {
        char id[ID_BYTES + 1];
        size_t bytes = write_uuid(id, i == 0);
        if (bytes == 0 || pwrite(id_files[i], id, bytes, 0) != (ssize_t)bytes)
            return false;
    }
    return true;
}

void bind_ids(const char *root) {
    char place[128];
    snprintf(place, sizeof place, "%s/proc/sys/kernel/random/boot_id", root);
    if (mount(BOOT_ID, place, NULL, MS_BIND, NULL))
        die("cannot bind", place);
    snprintf(place, sizeof place, "%s/etc/machine-id", root);
    mount(MACHINE_ID, place, NULL, MS_BIND, NULL); /* an image without that file needs none */
}

static uint32_t number(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* "" when all of it worked, else what did not. The agent has decoded it before; still, it is only an agent. */
static const char *reseed(const uint8_t *at, size_t bytes) {
    const uint8_t *end = at + bytes;
    if (bytes < 8 + 4)
        return "a short RESEED";
    uint64_t unix_ns = number(at) | (uint64_t)number(at + 4) << 32;
    uint32_t length = number(at + 8);
    const char *name = (const char *)(at + 12);
    if (length == 0 || length > HOST_NAME_BYTES || (size_t)(end - at) < 12 + (size_t)length + 4 || name[length - 1])
        return "a host name that is none";
    const uint8_t *entropy = at + 12 + length + 4;
    uint32_t count = number(entropy - 4);
    if (count != (size_t)(end - entropy))
        return "entropy that is cut";
    if (unix_ns)
        set_clock(unix_ns);
    if (count)
        stir(entropy, count);
    if (name[0] && sethostname(name, strlen(name)))
        return "the host name cannot be set";
    return renew_ids() ? "" : "the ids cannot be renewed";
}

static void hand_over(int agent, int stream) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } space = {0};
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_len = CMSG_LEN(sizeof stream);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(head), &stream, sizeof stream);
    if (sendmsg(agent, &message, MSG_NOSIGNAL) != 1)
        die("cannot pass on", "the stream");
    close(stream);
}

void await_order(int agent) {
    char byte;
    while (recv(agent, &byte, 1, MSG_PEEK) < 0 && errno == EINTR)
        ;
}

void serve_agent(const struct options *o, int agent, int stream) {
    static uint8_t message[MESSAGE_BYTES_MAX];
    for (;;) {
        ssize_t n = recv(agent, message, sizeof message, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* its last process is gone */
        if (message[0] == ORDER_STREAM) {
            hand_over(agent, stream >= 0 ? stream : open_stream(o));
            stream = -1;
        } else if (message[0] == ORDER_RESEED) {
            const char *why = reseed(message + 1, (size_t)n - 1);
            send(agent, why, strlen(why) + 1, MSG_NOSIGNAL);
        }
    }
}
