/* From a machine like any other to this sandbox: clock, randomness, name, limits. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define GROUPS "/groups"
#define OURS 4 /* processes: the agent, and room for keepers to start; as for every runtime */
#define ENTROPY_MAX 512
#define RNDADDENTROPY 0x40085203 /* linux/random.h, which musl does not bring */
#define RNDRESEEDCRNG 0x5207

void set_clock(uint64_t unix_ns) {
    struct timespec now = {(time_t)(unix_ns / 1000000000U), (long)(unix_ns % 1000000000U)};
    if (clock_settime(CLOCK_REALTIME, &now))
        die("cannot set", "the clock");
}

void stir(const uint8_t *entropy, unsigned bytes) {
    struct {
        int entropy_bits, bytes;
        uint8_t data[ENTROPY_MAX];
    } pool = {(int)bytes * 8, (int)bytes, {0}};
    memcpy(pool.data, entropy, bytes > ENTROPY_MAX ? ENTROPY_MAX : bytes);
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG, 0))
        die("cannot stir", "the random generator");
    close(fd);
    explicit_bzero(&pool, sizeof pool);
}

void come_alive(const struct go *go) {
    set_clock(go->unix_ns);
    stir(go->entropy, ENTROPY_BYTES);
    if (go->host_name[0] && sethostname(go->host_name, strlen(go->host_name)))
        die("cannot set", "the host name");
    if (!renew_ids())
        die("cannot make", "the ids of this machine");
}

static bool set(const char *file, const char *text) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return done;
}

static int must_open(const char *file, int flags) {
    int fd = open(file, flags | O_CLOEXEC);
    if (fd < 0)
        die("cannot open", file);
    return fd;
}

struct box_group make_group(void) {
    mkdir(GROUPS, 0700);
    if (mount("cgroup2", GROUPS, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        die("cannot mount", GROUPS);
    if (!set(GROUPS "/cgroup.subtree_control", "+memory +pids") || mkdir(GROUPS "/box", 0700))
        die("cannot make", "a control group");
    return (struct box_group){.procs = must_open(GROUPS "/box/cgroup.procs", O_WRONLY),
                              .memory_events = must_open(GROUPS "/box/memory.events", O_RDONLY),
                              .pids_events = must_open(GROUPS "/box/pids.events", O_RDONLY),
                              .memory_max = must_open(GROUPS "/box/memory.max", O_WRONLY),
                              .pids_max = must_open(GROUPS "/box/pids.max", O_WRONLY)};
}

static void limit(int file, uint64_t most) {
    char text[24], *at = text + sizeof text;
    for (uint64_t left = most; left; left /= 10)
        *--at = (char)('0' + left % 10);
    size_t digits = (size_t)(text + sizeof text - at);
    if (most && write(file, at, digits) != (ssize_t)digits)
        die("cannot set", "a limit of the control group");
}

void bound_group(const struct box_group *group, const struct go *go) {
    limit(group->memory_max, go->memory_bytes);
    limit(group->pids_max, go->processes ? go->processes + OURS : 0);
}
