/* corral-guest: process 1 of a virtual machine. It mounts what must be mounted, starts the agent as process 1 of a PID
 * namespace in the sandbox's root, where it waits for its stream, says hello to the host and waits for its GO. Then the
 * agent gets the stream. When the agent ends, so does the machine.
 *
 * A machine is frozen while it waits, and emulated copies are slow at whatever they do for the first time: so everything
 * is done before the hello that is the same for all of them. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define SANDBOX_USER 1000
#define CAPABILITY_VERSION_3 0x20080522
#define CAPABILITY(n) (1u << (n))
#define CAP_SETPCAP 8
#define CAP_SYS_ADMIN 21
#define CAP_SYS_RESOURCE 24

void nap_ms(unsigned ms) { nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000L}, NULL); }

_Noreturn void die(const char *what, const char *which) {
    dprintf(2, "corral-guest: %s %s: %s\n", what, which, strerror(errno));
    if (getpid() == 1)
        reboot(RB_AUTOBOOT); /* of the machine, whose monitor was told to end; or of the agent's namespace, likewise */
    _exit(1);
}

static void read_options(struct options *o) {
    char line[4096] = "", *word, *rest;
    *o = (struct options){0, "/dev/vda", "squashfs"};
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, line, sizeof line - 1) < 0)
        die("cannot read", "/proc/cmdline");
    close(fd);
    for (word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        if (strncmp(word, "corral.link=vsock:", 18) == 0)
            o->vsock_port = (unsigned)atoi(word + 18);
        else if (strncmp(word, "corral.root=", 12) == 0)
            snprintf(o->root, sizeof o->root, "%s", word + 12);
        else if (strncmp(word, "corral.fs=", 10) == 0)
            snprintf(o->fs, sizeof o->fs, "%s", word + 10);
    }
}

/* False: the stream was reset before all of it came. */
static bool hear(int stream, struct go *go) {
    size_t have = 0;
    while (have < sizeof *go) {
        ssize_t n = read(stream, (char *)go + have, sizeof *go - have);
        if (n > 0)
            have += (size_t)n;
        else if (n == 0 || errno == ENOTCONN || errno == ECONNRESET)
            return false;
        else if (errno != EINTR)
            die("cannot read", "the stream");
    }
    return memcmp(go->magic, GO_MAGIC, sizeof go->magic) == 0 && go->host_name[HOST_NAME_BYTES - 1] == 0;
}

/* A machine that was frozen while it waited may find its stream reset: it says hello again. */
static int greeted_stream(const struct options *o, struct go *go) {
    for (;;) {
        int stream = open_stream(o);
        open_console();
        if (write(stream, HELLO, strlen(HELLO)) == (ssize_t)strlen(HELLO) && hear(stream, go))
            return stream;
        close(stream);
        nap_ms(5);
    }
}

/* The agent is the sandbox's user, with what it needs to build the walls; it drops that again (SETUP). */
static void become_user(void) {
    struct {
        uint32_t version;
        int pid;
    } head = {CAPABILITY_VERSION_3, 0};
    uint32_t kept = CAPABILITY(CAP_SETPCAP) | CAPABILITY(CAP_SYS_ADMIN) | CAPABILITY(CAP_SYS_RESOURCE);
    uint32_t sets[6] = {kept, kept, kept, 0, 0, 0};
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) || setgroups(0, NULL) ||
        setresgid(SANDBOX_USER, SANDBOX_USER, SANDBOX_USER) || setresuid(SANDBOX_USER, SANDBOX_USER, SANDBOX_USER))
        die("cannot become", "the sandbox's user");
    if (syscall(SYS_capset, &head, sets) || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETPCAP, 0, 0) ||
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0) ||
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_RESOURCE, 0, 0))
        die("cannot keep", "the agent's capabilities");
}

static _Noreturn void become_agent(int program, int steward, struct box_group group) {
    char at[3][12];
    if (write(group.procs, "0", 1) != 1)
        die("cannot join", "the control group");
    enter_root();
    become_user();
    const int kept[3] = {group.memory_events, group.pids_events, steward};
    for (int i = 0; i < 3; i++) {
        snprintf(at[i], sizeof at[i], "%d", kept[i]);
        fcntl(kept[i], F_SETFD, 0);
    }
    char *const argv[] = {"corral-agent", "--fd", "-1", "--events", at[0], at[1], "--steward", at[2], NULL};
    char *const env[] = {NULL};
    syscall(SYS_execveat, program, "", argv, env, 0x1000 /* AT_EMPTY_PATH */);
    die("cannot execute", "the agent");
}

/* Gives our end of the socket over which the agent asks. */
static int start_agent(int program, struct box_group group) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        die("cannot make", "a socket");
    if (unshare(CLONE_NEWPID | CLONE_NEWIPC)) /* the next child is process 1 in there */
        die("cannot make", "a PID namespace");
    pid_t agent = fork();
    if (agent < 0)
        die("cannot start", "the agent");
    if (agent == 0) {
        if (unshare(CLONE_NEWNS))
            die("cannot make", "a mount namespace");
        become_agent(program, ends[1], group);
    }
    close(ends[1]);
    return ends[0];
}

static void run_until_agent_ends(void) {
    int status = 0;
    while (waitpid(-1, &status, 0) > 0 || errno == EINTR)
        ;
    dprintf(2, "corral-guest: the agent has ended (%d)\n", status);
}

int main(void) {
    struct options options;
    struct go go;
    if (getpid() != 1) {
        fputs("corral-guest is process 1 of a virtual machine, and does nothing elsewhere\n", stderr);
        return 2;
    }
    mount_system();
    read_options(&options);
    load_modules(&options);
    int program = open("/agent", O_RDONLY | O_CLOEXEC);
    if (program < 0)
        die("cannot open", "/agent");
    mount_root(&options);
    make_ids(); /* nobody's yet: their files are bound into the sandbox's root */
    struct box_group group = make_group();
    int agent = start_agent(program, group);
    await_order(agent);
    int stream = greeted_stream(&options, &go);
    come_alive(&go);
    bound_group(&group, &go);
    explicit_bzero(&go, sizeof go);
    serve_agent(&options, agent, stream);
    run_until_agent_ends();
    reboot(RB_AUTOBOOT);
    return 1;
}
