/* corral-stage: lays directories of this host into running sandboxes, below a writable layer that is the sandbox's own.
 *
 * It serves requests on descriptor 0, a SOCK_SEQPACKET socket, until that is closed; each in a child of its own, which
 * answers and ends. A packet is fields that end with NUL:
 *
 *   ID "mount" PID MOUNT_NAMESPACE UID GID PLACE (LOWER PATH)...
 *   ID "unmount" PID MOUNT_NAMESPACE PLACE PATH...
 *
 * PID is the sandbox's process 1 as this host sees it, MOUNT_NAMESPACE the inode number of its mount namespace: a
 * process that has the number by now but is another one is not touched. PLACE is a directory inside that holds the
 * mounts and their layers; PATH is relative to PLACE/build, "" is that directory itself.
 *
 * For each pair: a read-only clone of LOWER is attached in the sandbox, an overlay of it with an empty upper layer in
 * PLACE is mounted at PATH, and the clone is detached again, so that nothing inside names the host's directory. The
 * overlay is made with the rights of the sandbox's own user namespace and as its user, never with the host's: what the
 * sandbox's user may not write or own, no mistake here lets him.
 *
 * An answer is ID NUL and a sentence, which is empty when all went well.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PACKET_MAX 65536
#define FIELDS_MAX 128
#define LAYERS_MAX 32

/* linux/mount.h, which clashes with sys/mount.h; the numbers are the same on every architecture */
#define NR_OPEN_TREE 428
#define NR_MOVE_MOUNT 429
#define NR_MOUNT_SETATTR 442
#define TREE_CLONE 1
#define TREE_CLOEXEC O_CLOEXEC
#define TREE_RECURSIVE 0x8000
#define MOVE_FROM_EMPTY_PATH 4
#define EMPTY_PATH 0x1000
#define ATTR_RDONLY 1
#define ATTR_NOSUID 2
#define ATTR_NODEV 4

struct attributes {
	uint64_t set, clear, propagation, namespace;
};

struct request {
	char *field[FIELDS_MAX];
	int fields;
};

static const char *id = "";

static _Noreturn void answer(const char *format, ...)
{
	char text[1024];
	size_t used = (size_t)snprintf(text, 64, "%s", id) + 1;
	va_list arguments;
	va_start(arguments, format);
	int more = vsnprintf(text + used, sizeof text - used, format, arguments);
	va_end(arguments);
	if (more > 0)
		used += (size_t)more < sizeof text - used ? (size_t)more : sizeof text - used - 1;
	if (send(0, text, used, MSG_NOSIGNAL) < 0)
		_exit(1);
	_exit(0);
}

static unsigned long number(const char *text)
{
	char *end;
	errno = 0;
	unsigned long value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno)
		answer("\"%s\" is no number", text);
	return value;
}

static int open_namespace(unsigned long pid, const char *kind)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%lu/ns/%s", pid, kind);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		answer("the sandbox is gone: %s", strerror(errno));
	return fd;
}

/* Two descriptors: the namespaces of the sandbox, which is the one that is meant. */
static void open_sandbox(const struct request *r, int *mounts, int *users)
{
	struct stat theirs, ours;
	unsigned long pid = number(r->field[2]);
	*users = open_namespace(pid, "user");
	*mounts = open_namespace(pid, "mnt");
	if (fstat(*mounts, &theirs) < 0 || stat("/proc/self/ns/mnt", &ours) < 0)
		answer("the sandbox is gone: %s", strerror(errno));
	if (theirs.st_ino != number(r->field[3]) || theirs.st_ino == ours.st_ino)
		answer("process %lu is not that sandbox any more", pid);
}

static int clone_of(const char *lower)
{
	struct attributes plain = {.set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, .propagation = MS_PRIVATE};
	int tree = (int)syscall(NR_OPEN_TREE, AT_FDCWD, lower, TREE_CLONE | TREE_CLOEXEC);
	if (tree < 0)
		answer("cannot clone %s: %s", lower, strerror(errno));
	if (syscall(NR_MOUNT_SETATTR, tree, "", EMPTY_PATH, &plain, sizeof plain) < 0)
		answer("cannot make the clone of %s read-only: %s", lower, strerror(errno));
	return tree;
}

static void make(const char *path)
{
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		answer("cannot make %s: %s", path, strerror(errno));
}

static void place_of(char *path, size_t size, const char *place, const char *below)
{
	if (place[0] != '/' || strstr(below, "..") || strchr(below, ',') || strchr(below, ':') || strchr(below, '\\') ||
	    below[0] == '/')
		answer("a path that cannot be mounted");
	if (snprintf(path, size, "%s/build%s%s", place, *below ? "/" : "", below) >= (int)size)
		answer("a path is too long");
}

static void overlay(const char *place, int layer, int tree, const char *target)
{
	char lower[128], upper[128], work[128], options[512];
	snprintf(lower, sizeof lower, "%.80s/.lower%d", place, layer);
	snprintf(upper, sizeof upper, "%.80s/.upper%d", place, layer);
	snprintf(work, sizeof work, "%.80s/.index%d", place, layer);
	make(lower);
	make(upper);
	make(work);
	if (syscall(NR_MOVE_MOUNT, tree, "", AT_FDCWD, lower, MOVE_FROM_EMPTY_PATH) < 0)
		answer("cannot attach the inputs: %s", strerror(errno));
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s,userxattr", lower, upper, work);
	int failed = mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options);
	int error = errno;
	umount2(lower, MNT_DETACH); /* the overlay has its own hold on it */
	if (failed)
		answer("cannot lay the inputs below a writable layer: %s", strerror(error));
}

static _Noreturn void serve_mount(const struct request *r)
{
	int mounts, users, tree[LAYERS_MAX], layers = (r->fields - 7) / 2;
	if (r->fields < 9 || r->fields % 2 == 0 || layers > LAYERS_MAX)
		answer("a malformed request");
	gid_t gid = (gid_t)number(r->field[5]);
	uid_t uid = (uid_t)number(r->field[4]);
	const char *place = r->field[6];
	open_sandbox(r, &mounts, &users);
	for (int i = 0; i < layers; i++)
		tree[i] = clone_of(r->field[7 + 2 * i]);
	if (setns(users, CLONE_NEWUSER) < 0 || setns(mounts, CLONE_NEWNS) < 0)
		answer("cannot enter the sandbox: %s", strerror(errno));
	/* as its user, with its rights: neither root of this host nor anybody else */
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
		answer("cannot become the sandbox's user: %s", strerror(errno));
	for (int i = 0; i < layers; i++) {
		char target[PATH_MAX];
		place_of(target, sizeof target, place, r->field[8 + 2 * i]);
		if (i == 0)
			make(target);
		overlay(place, i, tree[i], target);
	}
	answer("");
}

static _Noreturn void serve_unmount(const struct request *r)
{
	int mounts, users;
	if (r->fields < 6)
		answer("a malformed request");
	open_sandbox(r, &mounts, &users);
	if (setns(users, CLONE_NEWUSER) < 0 || setns(mounts, CLONE_NEWNS) < 0)
		answer("cannot enter the sandbox: %s", strerror(errno));
	for (int i = r->fields - 1; i >= 5; i--) { /* the last was mounted on the first */
		char target[PATH_MAX];
		place_of(target, sizeof target, r->field[4], r->field[i]);
		if (umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
			answer("cannot take away %s: %s", target, strerror(errno));
	}
	answer("");
}

static _Noreturn void serve(char *packet, size_t size)
{
	struct request r = {.fields = 0};
	for (char *at = packet; at < packet + size && r.fields < FIELDS_MAX; at += strlen(at) + 1)
		r.field[r.fields++] = at;
	if (size == 0 || packet[size - 1] != 0 || r.fields < 2)
		_exit(1);
	id = r.field[0];
	if (strcmp(r.field[1], "mount") == 0)
		serve_mount(&r);
	if (strcmp(r.field[1], "unmount") == 0)
		serve_unmount(&r);
	answer("there is no request \"%s\"", r.field[1]);
}

int main(void)
{
	static char packet[PACKET_MAX + 1];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_IGN); /* children answer for themselves and are not waited for */
	umask(022);
	for (;;) {
		ssize_t size = recv(0, packet, PACKET_MAX, 0);
		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			return 0;
		pid_t child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, 0);
			serve(packet, (size_t)size);
		}
		if (child < 0) {
			id = packet; /* its first field */
			packet[size] = 0;
			char text[128];
			int used = snprintf(text, sizeof text, "%.60s%ccannot start a process: %s", id, 0, strerror(errno));
			if (used > 0 && send(0, text, (size_t)used, MSG_NOSIGNAL) < 0)
				return 1;
		}
	}
}
