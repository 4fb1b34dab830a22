/* The keeper of one exec: forked by the agent, subreaper of the command's whole tree. It starts the command, tells
 * the agent, and is gone only when no descendant is left. It trusts its tree with nothing but SIGKILL to itself. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define CONTROL 3
#define CHILD_STACK_BYTES 65536
#define PATH_DEFAULT "/usr/local/bin:/usr/bin:/bin"

/* Written by the child, which shares our memory until it has become the command. */
static volatile enum launch_stage failed_stage;
static volatile int failed_errno;

static struct {
    pid_t main;
    bool main_gone, started_told, killing, left, survivors, killed;
    int status;
    uint64_t begun_us, term_until_us, leftover_until_us, patience_until_us;
    uint64_t user_us, system_us, peak_bytes;
    unsigned rounds;
} k; /* of the current exec */

static void on_child(int number) { (void)number; }

static _Noreturn void give_up(enum launch_stage stage) {
    failed_errno = errno;
    failed_stage = stage;
    _exit(127);
}

static const char *search_path(char **env) {
    for (; *env; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return PATH_DEFAULT;
}

static void exec_found(const struct exec_request *r) {
    char candidate[PATH_BYTES_MAX];
    int error = ENOENT;
    size_t name = strlen(r->argv[0]);
    for (const char *path = search_path(r->env);; path++) {
        size_t directory = strcspn(path, ":");
        if (directory + name + 2 <= sizeof candidate) {
            memcpy(candidate, path, directory);
            candidate[directory] = '/';
            memcpy(candidate + directory + (directory > 0), r->argv[0], name + 1);
            execve(candidate, r->argv, r->env);
            if (errno != ENOENT && errno != ENOTDIR && (error == ENOENT || errno != EACCES))
                error = errno;
            if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
                break;
        }
        path += directory;
        if (*path == 0)
            break;
    }
    errno = error;
}

static void become_user(const struct exec_request *r) {
    if ((r->flags & EXEC_USER) == 0)
        return;
    /* raw: libc would tell its other threads, and the memory is shared with the keeper */
    if (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, r->gid, r->gid, r->gid) < 0 ||
        syscall(SYS_setresuid, r->uid, r->uid, r->uid) < 0)
        give_up(STAGE_USER);
}

static int command(void *argument) {
    const struct exec_request *r = argument;
    sigset_t none;
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    setsid();
    if ((r->flags & EXEC_TERMINAL) && ioctl(0, TIOCSCTTY, 0) < 0)
        give_up(STAGE_TERMINAL);
    for (uint32_t i = 0; i < settings.limits; i++) {
        struct limit_request *limit = &settings.limit[i];
        uint64_t both[2] = {limit->soft, limit->hard};
        if (syscall(SYS_prlimit64, 0, limit->resource, both, NULL) < 0)
            give_up(STAGE_LIMITS);
    }
    become_user(r);
    if (chdir(r->cwd) < 0)
        give_up(STAGE_CWD);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (strchr(r->argv[0], '/'))
        execve(r->argv[0], r->argv, r->env);
    else
        exec_found(r);
    give_up(STAGE_EXEC);
}

static void tell(struct report *report) {
    report->pid = k.main;
    report->started = k.started_told;
    send(CONTROL, report, sizeof *report, MSG_NOSIGNAL);
}

static uint64_t micros(struct timeval t) { return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec; }

static void tell_end(void) {
    struct report r = {.kind = REPORT_ENDED};
    r.how = WIFSIGNALED(k.status) ? EXIT_SIGNAL : EXIT_STATUS;
    r.value = (uint8_t)(WIFSIGNALED(k.status) ? WTERMSIG(k.status) : WEXITSTATUS(k.status));
    r.flags = (uint8_t)((k.left ? EXIT_LEFT_PROCESSES : 0) | (k.killed ? EXIT_KILLED : 0) |
                        (k.survivors ? EXIT_SURVIVORS : 0));
    r.wall_us = now_us() - k.begun_us;
    r.user_us = k.user_us;
    r.system_us = k.system_us;
    r.peak_bytes = k.peak_bytes;
    tell(&r);
    if (r.flags)
        _exit(0); /* a keeper that saw trouble does not serve again */
}

/* False when nobody is left. */
static bool reap(void) {
    int status;
    pid_t pid;
    struct rusage usage; /* of the child and of all that it reaped itself */
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        uint64_t peak = (uint64_t)usage.ru_maxrss * 1024;
        k.user_us += micros(usage.ru_utime);
        k.system_us += micros(usage.ru_stime);
        k.peak_bytes = peak > k.peak_bytes ? peak : k.peak_bytes;
        if (pid == k.main) {
            k.main_gone = true;
            k.status = status;
        }
    }
    return pid == 0;
}

static void begin_kill(uint32_t grace_ms, uint64_t now) {
    k.killed = k.killed || !k.main_gone;
    k.left = k.left || k.main_gone;
    if (grace_ms == 0) {
        k.killing = true;
    } else if (!k.killing) {
        k.term_until_us = now + grace_ms * 1000ULL;
        signal_tree(getpid(), SIGTERM, NULL);
        signal_tree(getpid(), SIGCONT, NULL);
    }
}

static void obey(uint64_t now) {
    struct order order;
    for (;;) {
        ssize_t n = recv(CONTROL, &order, sizeof order, MSG_DONTWAIT);
        if (n < 0)
            return;
        if (n != sizeof order) { /* the agent is gone, so nothing of ours may stay */
            k.killing = true;
            return;
        }
        if (order.kind == ORDER_KILL)
            begin_kill(order.grace_ms == GRACE_DEFAULT ? settings.grace_ms : order.grace_ms, now);
        else
            signal_tree(getpid(), order.signal, NULL);
    }
}

/* What is due now is done; gives how long nothing will be due, in microseconds. */
static uint64_t do_what_is_due(uint64_t now) {
    uint64_t next = UINT64_MAX;
    if (k.main_gone && !k.killing && k.term_until_us == 0) {
        if (k.leftover_until_us == 0)
            k.leftover_until_us = now + LEFTOVER_DRAIN_MS * 1000;
        if (now >= k.leftover_until_us)
            k.killing = k.left = true;
        else
            next = k.leftover_until_us;
    }
    if (k.term_until_us && !k.killing) {
        if (now >= k.term_until_us)
            k.killing = true;
        else
            next = k.term_until_us;
    }
    if (k.killing) {
        if (k.patience_until_us == 0)
            k.patience_until_us = now + KILL_PATIENCE_MS * 1000ULL;
        if (now >= k.patience_until_us) {
            k.survivors = true;
            tell_end(); /* does not return */
        }
        kill_tree_round(getpid(), k.rounds++, NULL);
        next = now + (k.rounds < 20 ? 1000 : 20000);
    }
    if (!k.started_told) {
        uint64_t at = k.begun_us + STARTED_DELAY_MS * 1000;
        if (now >= at) {
            tell(&(struct report){.kind = REPORT_STARTED});
            k.started_told = true;
        } else if (at < next)
            next = at;
    }
    return next == UINT64_MAX ? next : next - now;
}

static void keep(void) {
    sigset_t waiting;
    sigfillset(&waiting);
    sigdelset(&waiting, SIGCHLD);
    while (reap()) {
        struct pollfd control = {CONTROL, POLLIN, 0};
        uint64_t pause = do_what_is_due(now_us());
        struct timespec timeout = {(time_t)(pause / 1000000), (long)(pause % 1000000) * 1000};
        if (k.killing)
            control.events = 0, control.fd = -1; /* no order changes anything now */
        if (ppoll(&control, 1, pause == UINT64_MAX ? NULL : &timeout, &waiting) > 0)
            obey(now_us());
    }
    tell_end();
}

static void run(const struct exec_request *request) {
    static char stack[CHILD_STACK_BYTES] __attribute__((aligned(16)));
    memset(&k, 0, sizeof k);
    failed_errno = 0;
    k.begun_us = now_us();
    k.main = clone(command, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)request);
    if (k.main < 0) {
        failed_errno = errno;
        failed_stage = STAGE_PROCESS;
    }
    for (int fd = 0; fd < CONTROL; fd++)
        dup2(CONTROL, fd); /* the command's pipes are its own now; these numbers stay taken */
    if (failed_errno) {
        struct report r = {.kind = REPORT_NOT_STARTED, .error = failed_errno, .stage = (uint8_t)failed_stage};
        if (k.main > 0)
            waitpid(k.main, NULL, 0);
        tell(&r);
        return;
    }
    keep();
}

static void take_descriptors(int in, int out, int err) {
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(1);
}

static void close_others(void) {
    if (syscall(SYS_close_range, CONTROL + 1, ~0U, 0) == 0)
        return;
    struct rlimit most; /* a kernel before 5.9 */
    getrlimit(RLIMIT_NOFILE, &most);
    for (int fd = CONTROL + 1; (rlim_t)fd < most.rlim_cur && fd < 1 << 20; fd++)
        close(fd);
}

/* The next exec, its descriptors in place. What else comes is about an exec that has ended already. */
static void wait_order(struct frame *f) {
    static uint8_t payload[ORDER_BYTES_MAX];
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct order order = {0};
    for (;;) {
        struct iovec parts[2] = {{&order, sizeof order}, {payload, sizeof payload}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(CONTROL, &message, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)sizeof order)
            _exit(0); /* the agent is gone or does not need us any more */
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        if (order.kind != ORDER_EXEC || head == NULL)
            continue;
        int received[3];
        memcpy(received, CMSG_DATA(head), sizeof received);
        take_descriptors(received[0], received[1], received[2]);
        for (int i = 0; i < 3; i++)
            close(received[i]);
        *f = (struct frame){T_EXEC, 0, (uint32_t)((size_t)n - sizeof order), payload};
        return;
    }
}

/* Whatever our starter ignored, our execs shall not inherit. By system call: libc keeps signals 32 to 34 to itself and
 * would leave them as they are. The kernel's sigaction for "default" is all zeroes; its signal set has eight bytes. */
static void plain_signals(void) {
    static const unsigned long plain[8];
    for (int number = 1; number < 65; number++)
        syscall(SYS_rt_sigaction, number, plain, NULL, 8);
    signal(SIGPIPE, SIG_IGN);
}

static void block_all(void) {
    sigset_t all;
    struct sigaction action = {.sa_handler = on_child};
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigfillset(&action.sa_mask);
    sigaction(SIGCHLD, &action, NULL);
}

void keeper_main(struct launch *l) {
    if (l->request)
        take_descriptors(l->in, l->out, l->err);
    if (dup3(l->control, CONTROL, O_CLOEXEC) < 0)
        _exit(1);
    close_others();
    plain_signals();
    block_all();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (l->request)
        run(l->request);
    for (;;) {
        struct frame f;
        struct exec_request request;
        wait_order(&f);
        if (!decode_exec(&f, &request))
            _exit(1); /* the agent has decoded it before: cannot be */
        run(&request);
        free_exec(&request);
    }
}
