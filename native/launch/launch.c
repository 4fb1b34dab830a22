/* corral-launch: becomes another program with less: in control groups, as another user, with only the
 * descriptors that it is told to keep.
 *
 *   corral-launch [-g FILE]... [-u UID:GID] [-k HIGHEST_FD] [-x FD] -- PROGRAM [ARGUMENT]...
 *
 * -g FILE      write "0" to this cgroup.procs file: join the group
 * -u UID:GID   drop every supplementary group, then become this group and this user, for good
 * -k FD        close every descriptor above FD (default 2)
 * -x FD        execute the program that is open at FD instead of the one at PROGRAM (still argument 0)
 *
 * A worker starts it with posix_spawn (vfork), which a Python function between fork and exec would forbid.
 * It fails with one sentence on stderr and status 126; it never starts the program with more than it was told.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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
	int program = -1, option;
	const char *user = NULL;

	while ((option = getopt(argc, argv, "+g:u:k:x:")) != -1) {
		switch (option) {
		case 'g': join_group(optarg); break;
		case 'u': user = optarg; break;
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
	if (user)
		become(user);
	if (program >= 0)
		syscall(SYS_execveat, program, "", argv + optind, environ, AT_EMPTY_PATH);
	else
		execv(argv[optind], argv + optind);
	fail("cannot start", argv[optind]);
}
