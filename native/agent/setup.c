/* SETUP: build the walls, then seal ourselves inside. After READY nothing here runs again. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define SECUREBITS_SEALED 0xef /* NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE; those and KEEP_CAPS locked */
#define CAPABILITY_VERSION_3 0x20080522
#define CAP_SETPCAP 8

struct settings settings;

static char sentence[512];
static char notes[1024];

#define FAIL(...) (snprintf(sentence, sizeof sentence, __VA_ARGS__), false)

static void note(const char *what, int error) {
    size_t used = strlen(notes);
    snprintf(notes + used, sizeof notes - used, "%s: %s\n", what, strerror(error));
}

/* Fresh mounts go into a mount namespace of our own: the runtime's may belong to a user namespace above ours
 * (bubblewrap makes a second one after it mounted devpts), over which we have no capability. */
static bool own_mount_namespace(const struct setup_request *s) {
    for (uint32_t i = 0; i < s->mounts; i++)
        if (s->mount[i].fresh)
            return unshare(CLONE_NEWNS) == 0 || FAIL("cannot make a mount namespace: %s", strerror(errno));
    return true;
}

static bool bound_mounts(const struct setup_request *s) {
    for (uint32_t i = 0; i < s->mounts; i++) {
        const struct mount_request *m = &s->mount[i];
        char options[96];
        snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu%s", (unsigned long long)m->size_bytes,
                 (unsigned long long)m->files, m->fresh ? ",mode=1777" : "");
        unsigned long flags = MS_NOSUID | MS_NODEV | (m->fresh ? 0 : MS_REMOUNT);
        if (mount("tmpfs", m->path, "tmpfs", flags, options) < 0)
            return FAIL("cannot bound %s with %s: %s", m->path, options, strerror(errno));
    }
    return true;
}

static bool open_folders(const struct setup_request *s) {
    settings.folder = must_alloc((s->folders + 1) * sizeof *settings.folder);
    for (uint32_t i = 0; i < s->folders; i++) {
        struct stat status;
        int fd = open(s->folder[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &status) < 0)
            return FAIL("cannot open the writable folder %s: %s", s->folder[i], strerror(errno));
        settings.folder[i] = (struct folder){fd, strdup(s->folder[i]), status.st_mode & 07777};
    }
    settings.folders = s->folders;
    return true;
}

static void keep_limits(const struct setup_request *s) {
    settings.limit = must_alloc((s->limits + 1) * sizeof *settings.limit);
    settings.limit[0] = (struct limit_request){RLIMIT_CORE, 0, 0};
    for (uint32_t i = 0; i < s->limits; i++)
        settings.limit[i + 1] = s->limit[i];
    settings.limits = s->limits + 1;
}

static void forbid_user_namespaces(void) {
    int fd = open("/proc/sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) != 1)
        note("user namespaces cannot be forbidden here", errno);
    if (fd >= 0)
        close(fd);
}

static struct {
    uint32_t version;
    int pid;
} ourselves = {CAPABILITY_VERSION_3, 0};

/* Only CAP_SETPCAP empties the bounding set. A root without it could get capabilities back by execve; anybody else could
 * not, and is spared the question for each of them: a system call is dear in gVisor. */
static bool empty_bounding_set(void) {
    uint32_t held[6] = {0};
    if (geteuid() != 0 && (syscall(SYS_capget, &ourselves, held) < 0 || !(held[0] & 1u << CAP_SETPCAP)))
        return true;
    int in_set;
    for (unsigned long capability = 0; (in_set = prctl(PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0; capability++)
        if (in_set && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return FAIL("cannot drop capability %lu from the bounding set: %s", capability, strerror(errno));
    return true;
}

static bool drop_capabilities(void) {
    uint32_t none[6] = {0};
    if (!empty_bounding_set())
        return false;
    if (prctl(PR_SET_SECUREBITS, SECUREBITS_SEALED, 0, 0, 0) < 0 && errno != EPERM) {
        if (errno != EINVAL || geteuid() == 0)
            return FAIL("cannot lock the securebits: %s", strerror(errno));
        note("this kernel has no securebits", errno); /* gVisor's; they only matter to a root */
    }
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (syscall(SYS_capset, &ourselves, none) < 0)
        return FAIL("cannot drop capabilities: %s", strerror(errno));
    return true;
}

static bool install_seccomp(const struct setup_request *s) {
    struct {
        unsigned short length;
        void *filter;
    } program = {(unsigned short)(s->seccomp_bytes / 8), s->seccomp};
    if (s->seccomp_bytes == 0)
        return true;
    if (s->seccomp_bytes / 8 > 4096)
        return FAIL("the seccomp program has %u instructions, the kernel takes 4096", s->seccomp_bytes / 8);
    /* filters are read in place, so they must be aligned */
    void *aligned = must_alloc(s->seccomp_bytes);
    memcpy(aligned, s->seccomp, s->seccomp_bytes);
    program.filter = aligned;
    int failed = prctl(PR_SET_SECCOMP, 2 /* SECCOMP_MODE_FILTER */, &program, 0, 0);
    int error = errno;
    free(aligned);
    return failed == 0 || FAIL("the kernel refused the seccomp program: %s", strerror(error));
}

static bool seal(const struct setup_request *s) {
    bool strict = (s->flags & SETUP_DROP_CAPABILITIES) || s->seccomp_bytes;
    if (strict && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return FAIL("cannot set no_new_privs: %s", strerror(errno));
    if ((s->flags & SETUP_DROP_CAPABILITIES) && !drop_capabilities())
        return false;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* nobody traces us or reads our memory */
    return install_seccomp(s);
}

static bool carry_out(const struct setup_request *s) {
    if (s->version != PROTOCOL_VERSION)
        return FAIL("the agent speaks protocol %d, the host %u", PROTOCOL_VERSION, s->version);
    if (!own_mount_namespace(s) || !bound_mounts(s) || !open_folders(s))
        return false;
    if (s->host_name[0] && sethostname(s->host_name, strlen(s->host_name)) < 0)
        note("the host name cannot be set here", errno);
    if (s->flags & SETUP_FORBID_USER_NAMESPACES)
        forbid_user_namespaces();
    if (settings.no_subreapers)
        note("this kernel has no subreapers, so the end of an exec ends the daemons of all", EINVAL);
    keep_limits(s);
    settings.grace_ms = s->grace_ms;
    return seal(s);
}

void on_setup(const struct frame *f) {
    struct setup_request s;
    if (!decode_setup(f, &s))
        violation("a malformed SETUP");
    if (!carry_out(&s)) {
        send_sentence(T_SETUP_FAILED, f->stream, NULL, 0, sentence);
        link_flush();
        end_everything();
    }
    uint32_t head[3] = {PROTOCOL_VERSION, (uint32_t)getpid(), getpid() == 1 ? READY_IS_INIT : 0};
    send_sentence(T_READY, f->stream, head, sizeof head, notes);
    settings.ready = true;
    link_flush();
    start_spare_keeper(); /* off the first exec's way */
    free_setup(&s);
}
