/* What the guest mounts: for itself, and for the sandbox. The sandbox sees the root image, read-only, and in it a
 * /dev of six nodes, its own /proc, and folders on tmpfs that the agent bounds. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "guest.h"

#define ROOT "/root"
#define DEVICE_TRIES 4000 /* of a millisecond or more: a disk that is being found */

static void mount_at(const char *kind, const char *place, unsigned long flags, const char *options) {
    mkdir(place, 0755);
    if (mount(kind, place, kind, flags, options) && errno != EBUSY)
        die("cannot mount", place);
}

void mount_system(void) {
    mount_at("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, NULL);
    open_console();
}

/* Once more when the stream is there: the driver that brings it may also bring the console. */
void open_console(void) {
    int console = open("/dev/console", O_RDWR);
    if (console < 0)
        console = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        if (console != fd)
            dup2(console, fd);
    if (console > 2)
        close(console);
}

static void node(const char *name, unsigned major, unsigned minor) {
    char path[64];
    snprintf(path, sizeof path, ROOT "/dev/%s", name);
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) || chmod(path, 0666))
        die("cannot make", path);
}

static void name_also(const char *target, const char *path) {
    if (symlink(target, path))
        die("cannot make", path);
}

static void fill_dev(void) {
    if (mount("tmpfs", ROOT "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536"))
        die("cannot mount", ROOT "/dev");
    node("null", 1, 3);
    node("zero", 1, 5);
    node("full", 1, 7);
    node("random", 1, 8);
    node("urandom", 1, 9);
    node("tty", 5, 0);
    name_also("/proc/self/fd", ROOT "/dev/fd");
    name_also("/proc/self/fd/0", ROOT "/dev/stdin");
    name_also("/proc/self/fd/1", ROOT "/dev/stdout");
    name_also("/proc/self/fd/2", ROOT "/dev/stderr");
    name_also("pts/ptmx", ROOT "/dev/ptmx");
    mount_at("devpts", ROOT "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    mkdir(ROOT "/dev/shm", 01777);
    if (mount(NULL, ROOT "/dev", NULL, MS_REMOUNT | MS_NOSUID | MS_NOEXEC | MS_RDONLY, "mode=755,size=65536"))
        die("cannot seal", ROOT "/dev");
}

/* Programs that talk to themselves find their own loopback; there is no other network. */
static void raise_loopback(void) {
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    ioctl(fd, SIOCSIFFLAGS, &lo);
    close(fd);
}

void mount_root(const struct options *o) {
    int tries = 0;
    mkdir(ROOT, 0755);
    while (mount(o->root, ROOT, o->fs, MS_RDONLY | MS_NOSUID | MS_NODEV, NULL)) {
        if ((errno != ENOENT && errno != ENXIO && errno != ENOTBLK) || ++tries > DEVICE_TRIES)
            die("cannot mount the root image", o->root);
        nap_ms(1);
    }
    fill_dev();
    mount_at("tmpfs", ROOT "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"); /* the agent bounds these three */
    mount_at("tmpfs", ROOT "/work", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("tmpfs", ROOT "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    raise_loopback();
}

void enter_root(void) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("proc", ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        die("cannot mount", ROOT "/proc");
    bind_ids(ROOT);
    if (umount2("/groups", MNT_DETACH) || umount2("/sys", MNT_DETACH) || umount2("/dev", MNT_DETACH) ||
        umount2("/proc", MNT_DETACH))
        die("cannot unmount", "what is the guest's own");
    if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        die("cannot enter", "the root image");
}
