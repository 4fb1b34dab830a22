/* The agent's keepers: which processes they are, those that wait for their next exec, and what a lost one leaves. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define ORPHAN_PATIENCE_US 1000000

static struct keeper *spare, *unused;
static size_t spares;

/* Keeper processes that are not reaped yet, also those that are about to exit. */
static pid_t *keeper_pid;
static size_t keepers, keeper_capacity;

bool is_keeper(pid_t pid) {
    for (size_t i = 0; i < keepers; i++)
        if (keeper_pid[i] == pid)
            return true;
    return false;
}

static void remember_keeper(pid_t pid) {
    if (keepers == keeper_capacity) {
        keeper_capacity = keeper_capacity ? 2 * keeper_capacity : 16;
        if ((keeper_pid = realloc(keeper_pid, keeper_capacity * sizeof *keeper_pid)) == NULL)
            violation("out of memory");
    }
    keeper_pid[keepers++] = pid;
}

void forget_keeper(pid_t pid) {
    for (size_t i = 0; i < keepers; i++)
        if (keeper_pid[i] == pid) {
            keeper_pid[i] = keeper_pid[--keepers];
            return;
        }
}

void reap_children(void) {
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        forget_keeper(pid);
}

bool spare_keepers_run(void) {
    for (struct keeper *k = spare; k; k = k->next) {
        char state = process_state(k->stat);
        if (state == 0 || state == 'T' || state == 't' || state == 'Z' || state == 'X')
            return false;
    }
    return true;
}

bool only_keepers_are_children(void) {
    static int children = -1;
    char path[64], text[65536];
    pid_t self = getpid();
    snprintf(path, sizeof path, "/proc/self/task/%d/children", self);
    if (children < 0)
        children = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = pread(children, text, sizeof text - 1, 0);
    if (n < 0) /* a kernel without that list */
        return signal_tree(self, 0, is_keeper) == 0;
    text[n] = 0;
    for (char *at = text, *end; *at && *at != '\n'; at = end + strspn(end, " ")) {
        long pid = strtol(at, &end, 10);
        if (end == at || !is_keeper((pid_t)pid))
            return false;
    }
    return true;
}

void kill_orphans(void) {
    uint64_t until = now_us() + ORPHAN_PATIENCE_US;
    for (unsigned round = 0; now_us() < until; round++) {
        reap_children();
        if (kill_tree_round(getpid(), round, is_keeper) <= 0)
            break;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    reap_children();
}

void dismiss(struct keeper *k) {
    for (struct keeper **at = &spare; *at; at = &(*at)->next)
        if (*at == k) {
            *at = k->next;
            spares--;
            break;
        }
    close_source(&k->control);
    close(k->stat);
    k->exec = NULL;
    k->next = unused;
    unused = k;
}

void give_back(struct keeper *k, bool fit) {
    k->exec = NULL;
    if (!fit || spares >= SPARE_KEEPERS_MAX) {
        dismiss(k);
        return;
    }
    k->next = spare;
    spare = k;
    spares++;
}

static struct keeper *take_unused(void) {
    struct keeper *k = unused;
    if (k)
        unused = k->next;
    else
        k = must_alloc(sizeof *k);
    return k;
}

/* A new keeper; it starts with the exec of `l`, or waits when that has none. NULL and errno. */
static struct keeper *fork_keeper(struct launch *l) {
    int control[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) < 0)
        return NULL;
    l->control = control[1];
    pid_t pid = fork();
    if (pid == 0)
        keeper_main(l);
    int error = errno;
    close(control[1]);
    errno = error;
    if (pid < 0) {
        close(control[0]);
        return NULL;
    }
    remember_keeper(pid);
    struct keeper *k = take_unused();
    *k = (struct keeper){NULL, pid, open_process(pid), {control[0], false, on_keeper_ready, k}, NULL};
    watch(&k->control, false);
    return k;
}

void start_spare_keeper(void) {
    struct launch nothing = {NULL, -1, -1, -1, -1};
    struct keeper *k = fork_keeper(&nothing);
    if (k) { /* without one the first exec forks its own */
        k->next = spare;
        spare = k;
        spares++;
    }
}

static bool send_exec(struct keeper *k, const struct frame *f, const struct launch *l) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    struct order o = {.kind = ORDER_EXEC};
    struct iovec parts[2] = {{&o, sizeof o}, {f->payload, f->length}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    int three[3] = {l->in, l->out, l->err};
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof three), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), three, sizeof three);
    return sendmsg(k->control.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) > 0;
}

struct keeper *keeper_for(const struct frame *f, struct launch *l) {
    while (spare && f->length <= ORDER_BYTES_MAX) {
        struct keeper *k = spare;
        if (send_exec(k, f, l)) {
            spare = k->next;
            spares--;
            return k;
        }
        dismiss(k);
    }
    return fork_keeper(l);
}

void order(struct keeper *k, struct order o) {
    if (k)
        send(k->control.fd, &o, sizeof o, MSG_NOSIGNAL | MSG_DONTWAIT);
}
