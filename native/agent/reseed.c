/* What the agent asks of process 1 of its machine; it has sealed itself and can do none of it alone. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

#define STEWARD_PATIENCE_MS 10000

int new_stream(void) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } space;
    char order = STEWARD_STREAM, byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space};
    ssize_t n;
    if (send(settings.steward, &order, 1, MSG_NOSIGNAL) != 1)
        end_everything();
    while ((n = recvmsg(settings.steward, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (head == NULL)
        end_everything();
    int stream;
    memcpy(&stream, CMSG_DATA(head), sizeof stream);
    return stream;
}

void on_reseed(const struct frame *f) {
    static char order = STEWARD_RESEED;
    struct reseed_request r;
    char notes[512];
    if (!decode_reseed(f, &r))
        violation("a malformed RESEED");
    if (settings.steward < 0) {
        watch_link_again();
        send_sentence(T_RESEEDED, f->stream, NULL, 0, "clock and chance are the host's");
        return;
    }
    struct iovec parts[2] = {{&order, 1}, {f->payload, f->length}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    struct pollfd answer = {settings.steward, POLLIN, 0};
    if (sendmsg(settings.steward, &message, MSG_NOSIGNAL) < 0 || poll(&answer, 1, STEWARD_PATIENCE_MS) <= 0)
        violation("the steward does not answer");
    ssize_t n = recv(settings.steward, notes, sizeof notes - 1, 0);
    if (n <= 0)
        violation("the steward is gone");
    notes[n] = 0;
    send_sentence(T_RESEEDED, f->stream, NULL, 0, notes);
}
