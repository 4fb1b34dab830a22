/* Process 1 of the outer machine of the nested proof: modules, the root disk, and on to the script that runs the tests.
 * Words of the kernel's command line after "--" do not reach us; everything here is fixed. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    printf("nested-init: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    reboot(RB_AUTOBOOT);
}

static void load(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "/modules/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
        fail(path);
    close(fd);
}

/* The attacks aim at a port of this machine; it has no other network. */
static void raise_loopback(void) {
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo))
        fail("the loopback device");
    close(fd);
}

int main(void) {
    char line[128];
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; fd < 3 && console >= 0; fd++)
        dup2(console, fd);
    FILE *order = fopen("/modules/load", "re");
    while (order && fgets(line, sizeof line, order)) {
        line[strcspn(line, "\n")] = 0;
        load(line);
    }
    mkdir("/root", 0755);
    for (int tries = 0; mount("/dev/vda", "/root", "squashfs", MS_RDONLY, NULL); tries++) {
        if (tries == 5000)
            fail("/dev/vda");
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    umount2("/dev", MNT_DETACH);
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        fail("the root");
    if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL) ||
        mount("sysfs", "/sys", "sysfs", 0, NULL) || mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) ||
        mount("tmpfs", "/scratch", "tmpfs", 0, "mode=1777,size=90%") || mount("tmpfs", "/run", "tmpfs", 0, NULL) ||
        mount("/dev/vdb", "/give", "squashfs", MS_RDONLY, NULL))
        fail("a mount");
    mkdir("/dev/pts", 0755);
    mount("devpts", "/dev/pts", "devpts", 0, NULL);
    mkdir("/dev/shm", 01777);
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777");
    symlink("/proc/self/fd", "/dev/fd");
    raise_loopback();
    char *const argv[] = {"/give/run-tests", NULL};
    char *const env[] = {"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/scratch", "TMPDIR=/scratch", "LANG=C.UTF-8",
                         "PYTHONDONTWRITEBYTECODE=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", NULL};
    execve(argv[0], argv, env);
    fail(argv[0]);
    return 1;
}
