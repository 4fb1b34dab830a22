/* corral-launch: becomes another program with less: in control groups, as another user, with only the
 * descriptors that it is told to keep.
 *
 *   corral-launch [-g FILE]... [-b DIRECTORY -t PLACE] [-u UID:GID] [-n FIRST:SECOND [-h DIRECTORY]...]
 *                 [-j PID] [-k HIGHEST_FD] [-x FD] -- PROGRAM [ARGUMENT]...
 *
 * -g FILE      write "0" to this file of a control group (tasks or cgroup.procs): join it
 * -b, -t       in a mount namespace of its own, show this directory at that place: there the user of -u reaches it,
 *              although directories above it are closed to him; the mount goes with the program and its children
 * -u UID:GID   drop every supplementary group, then become this group and this user, for good
 * -n FIRST:SECOND   enter a user and a mount namespace of our own. Its users and groups 0 and SECOND are FIRST and
 *              FIRST + 1 outside (only root can ask for that); with FIRST 0 its root is who we are now, and there is
 *              nobody else
 * -h DIRECTORY hide it there under an empty tmpfs
 * -j PID       enter the user and mount namespaces of that process instead, and become root there
 * -k FD        close every descriptor above FD (default 2)
 * -x FD        execute the program that is open at FD instead of the one at PROGRAM (still argument 0)
 *
 * A worker starts it with posix_spawn (vfork), which a Python function between fork and exec would forbid.
 * It fails with one sentence on stderr and status 126; it never starts the program with more than it was told.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_execveat
#error "this architecture has no execveat"
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#define HIDDEN_MAX 8

extern char **environ;

static _Noreturn void fail(const char *what, const char *which)
{
	dprintf(2, "corral-launch: %s %s: %s\n", what, which, strerror(errno));
	_exit(126);
}

static _Noreturn void misuse(const char *which)
{
	errno = EINVAL;
	fail("argument", which);
}

static unsigned long number(const char *text, char **end)
{
	if (*text < '0' || *text > '9')
		misuse(text);
	errno = 0;
	unsigned long value = strtoul(text, end, 10);
	if (errno)
		fail("argument", text);
	return value;
}

static unsigned long whole_number(const char *text)
{
	char *end;
	unsigned long value = number(text, &end);
	if (*end)
		misuse(text);
	return value;
}

static void join_group(const char *file)
{
	int descriptor = open(file, O_WRONLY | O_CLOEXEC);
	if (descriptor < 0 || write(descriptor, "0", 1) != 1)
		fail("cannot join the control group", file);
	close(descriptor);
}

static void become(const char *user)
{
	char *end;
	uid_t uid = (uid_t)number(user, &end);
	if (*end != ':')
		misuse(user);
	gid_t gid = (gid_t)whole_number(end + 1);
	if (uid == 0 || gid == 0)
		misuse(user); /* dropping to root is no drop */
	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		fail("cannot become", user);
}

static void write_own(const char *file, const char *text, pid_t process)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", process, file);
	int descriptor = open(path, O_WRONLY | O_CLOEXEC);
	if (descriptor < 0 || write(descriptor, text, strlen(text)) < 0)
		fail("cannot write", path);
	close(descriptor);
}

/* Only a process outside may map other ids than its own into a namespace: a child of ours stays there and does it. */
static void map_from_outside(unsigned long first, unsigned long second)
{
	char map[96], byte = 0;
	int entered[2];
	pid_t us = getpid();
	if (pipe2(entered, O_CLOEXEC))
		fail("cannot make", "a pipe");
	pid_t mapper = fork();
	if (mapper < 0)
		fail("cannot start", "the mapper");
	if (mapper == 0) {
		close(entered[1]);
		if (read(entered[0], &byte, 1) != 1)
			_exit(126);
		snprintf(map, sizeof map, "0 %lu 1\n%lu %lu 1\n", first, second, first + 1);
		write_own("uid_map", map, us);
		write_own("gid_map", map, us);
		_exit(0);
	}
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		fail("cannot make", "a user namespace");
	int status;
	if (write(entered[1], &byte, 1) != 1 || waitpid(mapper, &status, 0) != mapper || status)
		fail("cannot map", "users into the namespace");
	close(entered[0]);
	close(entered[1]);
	if (setgroups(0, NULL))
		fail("cannot drop", "supplementary groups");
}

static void map_ourselves(void)
{
	char map[64];
	uid_t user = geteuid();
	gid_t group = getegid();
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		fail("cannot make", "a user namespace");
	write_own("setgroups", "deny", getpid());
	snprintf(map, sizeof map, "0 %u 1\n", user);
	write_own("uid_map", map, getpid());
	snprintf(map, sizeof map, "0 %u 1\n", group);
	write_own("gid_map", map, getpid());
}

static void enter_namespaces(const char *users, const char *const *hidden, int count)
{
	char *end;
	unsigned long first = number(users, &end);
	if (*end != ':')
		misuse(users);
	if (first)
		map_from_outside(first, whole_number(end + 1));
	else
		map_ourselves();
	if (setresgid(0, 0, 0) || setresuid(0, 0, 0))
		fail("cannot become", "root of the namespace");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fail("cannot make private", "the mounts");
	for (int i = 0; i < count; i++)
		if (mount("tmpfs", hidden[i], "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,mode=755"))
			fail("cannot hide", hidden[i]);
}

static void join_namespaces(unsigned long process)
{
	static const char *const kinds[] = {"user", "mnt"}; /* the rights of the first allow the second */
	int descriptors[2];
	char path[64];
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "/proc/%lu/ns/%s", process, kinds[i]);
		if ((descriptors[i] = open(path, O_RDONLY | O_CLOEXEC)) < 0)
			fail("cannot open", path);
	}
	for (int i = 0; i < 2; i++)
		if (setns(descriptors[i], 0))
			fail("cannot enter the namespace", kinds[i]);
	if (setgroups(0, NULL) || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		fail("cannot become", "root of the namespace");
}

static void show(const char *directory, const char *place)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) ||
	    mount(directory, place, NULL, MS_BIND, NULL))
		fail("cannot show to the sandbox's user", directory);
}

static void close_above(unsigned int highest)
{
	if (syscall(SYS_close_range, highest + 1, ~0U, 0) == 0)
		return;
	if (errno != ENOSYS)
		fail("cannot close", "descriptors");
	long last = sysconf(_SC_OPEN_MAX);
	for (long descriptor = (long)highest + 1; descriptor < last; descriptor++)
		close((int)descriptor);
}

int main(int argc, char **argv)
{
	unsigned int keep = 2;
	int program = -1, option, hide = 0;
	unsigned long joined = 0;
	const char *user = NULL, *namespaces = NULL, *directory = NULL, *place = NULL, *hidden[HIDDEN_MAX];

	while ((option = getopt(argc, argv, "+b:g:h:j:k:n:t:u:x:")) != -1) {
		switch (option) {
		case 'b': directory = optarg; break;
		case 't': place = optarg; break;
		case 'g': join_group(optarg); break;
		case 'u': user = optarg; break;
		case 'n': namespaces = optarg; break;
		case 'h':
			if (hide == HIDDEN_MAX)
				misuse(optarg);
			hidden[hide++] = optarg;
			break;
		case 'j': joined = whole_number(optarg); break;
		case 'k': keep = (unsigned int)whole_number(optarg); break;
		case 'x': program = (int)whole_number(optarg); break;
		default: misuse("list");
		}
	}
	if (optind >= argc)
		misuse("list: no program");
	if (program >= 0 && fcntl(program, F_SETFD, FD_CLOEXEC))
		fail("cannot use", "the open program");
	close_above(keep);
	if (!directory != !place)
		misuse("list: -b and -t belong together");
	if (directory)
		show(directory, place);
	if (user)
		become(user);
	if (namespaces)
		enter_namespaces(namespaces, hidden, hide);
	else if (hide)
		misuse("-h: it needs -n");
	if (joined)
		join_namespaces(joined);
	if (program >= 0)
		syscall(SYS_execveat, program, "", argv + optind, environ, AT_EMPTY_PATH);
	else
		execv(argv[optind], argv + optind);
	fail("cannot start", argv[optind]);
}
