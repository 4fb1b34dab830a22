/* corral-agent: process 1 of a sandbox. Its options are descriptors that its starter left open:
 *   --fd N         the stream to the host (default 0); -1: the steward gives one
 *   --events M P   memory.events and pids.events of the control group around it; -1 for one that is not there
 *   --steward S    a socket to process 1 of its machine (../guest), which brings a new stream after a snapshot
 * With --host-name NAME it names the box and ends: a restored one's agent has sealed itself and cannot. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

static void open_standard(void) {
    int null;
    while ((null = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && null < 3)
        ; /* whatever of 0, 1, 2 was closed is taken now */
    if (null >= 3)
        close(null);
}

static int given(const char *number) {
    int fd = atoi(number);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static bool read_options(char **argv, int *stream) {
    settings.steward = settings.memory_events = settings.process_events = -1;
    for (argv++; *argv; argv += 2) {
        if (argv[1] && strcmp(*argv, "--fd") == 0) {
            *stream = atoi(argv[1]);
        } else if (argv[1] && strcmp(*argv, "--steward") == 0) {
            settings.steward = given(argv[1]);
        } else if (argv[1] && argv[2] && strcmp(*argv, "--events") == 0) {
            settings.memory_events = given(argv[1]);
            settings.process_events = given(argv[2]);
            argv++;
        } else {
            return false;
        }
    }
    return true;
}

/* A machine may be frozen while we wait for the stream, and copied: what guards our stack is a copy's own. Its callers
 * must never return, for theirs is on the stack already. */
__attribute__((no_stack_protector, noinline)) static void renew_stack_guard(void) {
#ifdef __x86_64__
    unsigned long guard;
    if (getrandom(&guard, sizeof guard, 0) == sizeof guard)
        __asm__ volatile("movq %0, %%fs:0x28" : : "r"(guard & ~0xffUL));
#endif
}

/* Ours from here on, above the standard descriptors, and of no exec's. */
static int kept_stream(int stream) {
    if (stream < 0)
        return stream;
    int moved = fcntl(stream, F_DUPFD_CLOEXEC, 3);
    if (moved < 0)
        _exit(2);
    close(stream);
    return moved;
}

static _Noreturn void live(int stream) {
    if (stream < 0) {
        stream = new_stream();
        renew_stack_guard();
    }
    link_open(stream);
    loop_run();
}

static int name_host(const char *name) {
    if (sethostname(name, strlen(name)) == 0)
        return 0;
    dprintf(2, "corral-agent: cannot set the host name: %s\n", strerror(errno));
    return 1;
}

int main(int argc, char **argv) {
    int stream = 0;
    if (argc == 3 && strcmp(argv[1], "--host-name") == 0)
        return name_host(argv[2]);
    if (!read_options(argv, &stream)) {
        static const char usage[] = "usage: corral-agent [--fd N] [--events MEMORY PIDS] [--steward N] | --host-name NAME\n";
        return write(2, usage, sizeof usage - 1) < 0 ? 2 : 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL); /* whoever ignores it cannot wait; what else our starter ignored, each keeper undoes */
    stream = kept_stream(stream);
    open_standard();
    umask(022);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    /* a kernel that only pretends, to process 1, refuses to take it back */
    settings.no_subreapers = prctl(PR_SET_CHILD_SUBREAPER, 0) < 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    live(stream);
}
