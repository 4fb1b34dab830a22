/* The way to this user's daemon: a private directory that holds a socket and a token; and starting it on demand. */
#include "cc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

extern char **environ;

static const char FAILED[] = "start.failed", SILENT[] = "silent";

/* $CORRAL_CC_DIR, else $XDG_RUNTIME_DIR/corral-cc, else /tmp/corral-cc-UID; src/corral/compile/rendezvous.py agrees. */
static bool name_directory(char *path, size_t size)
{
	struct stat runtime;
	const char *named = getenv("CORRAL_CC_DIR"), *base = getenv("XDG_RUNTIME_DIR");
	int wrote;
	if (named && *named == '/')
		wrote = snprintf(path, size, "%s", named);
	else if (base && *base == '/' && stat(base, &runtime) == 0 && runtime.st_uid == geteuid())
		wrote = snprintf(path, size, "%s/corral-cc", base);
	else
		wrote = snprintf(path, size, "/tmp/corral-cc-%u", geteuid());
	return wrote > 0 && (size_t)wrote < size;
}

/* Ours, and closed to everybody else: otherwise somebody could sit behind the socket and hand us objects. */
static int open_directory(const char *path, bool make)
{
	struct stat found;
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0 && errno == ENOENT && make && (mkdir(path, 0700) == 0 || errno == EEXIST))
		directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0)
		return -1;
	if (fstat(directory, &found) == 0 && found.st_uid == geteuid() && !(found.st_mode & 077))
		return directory;
	close(directory);
	return -1;
}

static int try_connect(int directory, unsigned char token[TOKEN_BYTES])
{
	int file = openat(directory, "token", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (file < 0)
		return -1;
	ssize_t got = read(file, token, TOKEN_BYTES);
	close(file);
	if (got != TOKEN_BYTES)
		return -1;
	int daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (daemon < 0)
		return -1;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	/* By the open directory: its path may be longer than a socket's name can be. */
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/socket", directory);
	struct ucred peer;
	socklen_t length = sizeof peer;
	if (connect(daemon, (struct sockaddr *)&address, sizeof address) == 0 &&
	    getsockopt(daemon, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid())
		return daemon;
	close(daemon);
	return -1;
}

static bool executable(const char *path)
{
	return access(path, X_OK) == 0;
}

/* Parents of `path`, `levels` up, then `rest`. */
static bool beside(char *to, size_t size, const char *path, int levels, const char *rest)
{
	size_t length = strlen(path);
	while (levels-- > 0) {
		while (length && path[length - 1] != '/')
			length--;
		if (!length)
			return false;
		length--;
	}
	int wrote = snprintf(to, size, "%.*s/%s", (int)length, path, rest);
	return wrote > 0 && (size_t)wrote < size;
}

/* The Python that has Corral: told by the environment or beside the links, else found from where we are installed. */
static bool find_python(const struct command *command, char *python, size_t size)
{
	char path[PATH_MAX + 32], us[PATH_MAX];
	const char *told = getenv("CORRAL_CC_PYTHON");
	if (told && *told == '/' && strlen(told) < size) {
		strcpy(python, told);
		return executable(python);
	}
	if (*command->links) {
		snprintf(path, sizeof path, "%s/.corral-cc", command->links);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t got = file < 0 ? -1 : read(file, python, size - 1);
		if (file >= 0)
			close(file);
		if (got > 0) {
			python[got] = 0;
			python[strcspn(python, "\n")] = 0;
			if (*python == '/' && executable(python))
				return true;
		}
	}
	ssize_t length = readlink("/proc/self/exe", us, sizeof us - 1);
	if (length > 0) {
		us[length] = 0;
		/* BIN/corral-cc beside BIN/corral, then PREFIX/lib/pythonX/site-packages/corral/_native/corral-cc */
		if (beside(path, sizeof path, us, 1, "corral") && executable(path) &&
		    beside(python, size, us, 1, "python3") && executable(python))
			return true;
		if (beside(path, sizeof path, us, 6, "bin/corral") && executable(path) &&
		    beside(python, size, us, 6, "bin/python3") && executable(python))
			return true;
	}
	for (const char *at = getenv("PATH"); at && *at;) {
		size_t part = strcspn(at, ":");
		int wrote = snprintf(path, sizeof path, "%.*s/corral", (int)part, at);
		if (part && wrote > 0 && (size_t)wrote < sizeof path && executable(path)) {
			char real[PATH_MAX];
			if (realpath(path, real) && beside(python, size, real, 1, "python3") && executable(python))
				return true;
		}
		at += part + (at[part] == ':');
	}
	return false;
}

static bool daemon_keeps(const char *variable)
{
	/* What the first caller's project sets must not decide how the daemon behaves for all later ones. */
	static const char *const kept[] = {"HOME=", "USER=", "LOGNAME=", "PATH=", "TMPDIR=", "XDG_", "CORRAL_", "TZ=",
	                                   "AWS_", "GOOGLE_", "AZURE_", "HTTPS_PROXY=", "NO_PROXY=", "SSL_CERT_"};
	if (strncmp(variable, "CORRAL_CC_DEPTH=", 16) == 0)
		return false;
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		if (strncmp(variable, kept[i], strlen(kept[i])) == 0)
			return true;
	return false;
}

static _Noreturn void become_daemon(char *python, int directory, int ready)
{
	char number[16];
	char *argv[] = {python, "-s", "-P", "-m", "corral.app.launch", "daemon", "--ready-fd", number, NULL};
	char **kept = environ;
	for (char **variable = environ; *variable; variable++)
		if (daemon_keeps(*variable))
			*kept++ = *variable;
	*kept = NULL;
	setsid();
	if (fork())
		_exit(0); /* init adopts the daemon */
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int number_ = 1; number_ < 32; number_++)
		signal(number_, SIG_DFL);
	int null = open("/dev/null", O_RDWR);
	int log = openat(directory, "daemon.log", O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
	ready = dup2(ready, 3);
	dup2(null, 0);
	dup2(null, 1);
	dup2(log < 0 ? null : log, 2);
	/* Above all make's job server: a daemon that holds it would hold up the build. */
	if (syscall(SYS_close_range, 4, ~0U, 0))
		for (int descriptor = 4; descriptor < 1024; descriptor++)
			close(descriptor);
	snprintf(number, sizeof number, "%d", ready);
	if (chdir("/"))
		_exit(126);
	execv(python, argv);
	_exit(126);
}

static bool start(const struct command *command, int directory)
{
	static char python[PATH_MAX];
	int ready[2];
	char byte = 0;
	if (!find_python(command, python, sizeof python) || pipe2(ready, O_CLOEXEC))
		return false;
	/* The pipe must survive the dup2 of 0 to 2 and to 3 in the child. */
	int high = fcntl(ready[1], F_DUPFD_CLOEXEC, 10);
	int spare = fcntl(directory, F_DUPFD_CLOEXEC, 10);
	pid_t child = high < 0 || spare < 0 ? -1 : fork();
	if (child == 0)
		become_daemon(python, spare, high);
	close(ready[1]);
	close(high);
	close(spare);
	if (child > 0) {
		int status;
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		struct pollfd readable = {.fd = ready[0], .events = POLLIN};
		if (poll(&readable, 1, START_MS) != 1 || read(ready[0], &byte, 1) != 1)
			byte = 0;
	}
	close(ready[0]);
	return byte == 'R';
}

static bool marked_lately(int directory, const char *name)
{
	struct stat mark;
	if (fstatat(directory, name, &mark, AT_SYMLINK_NOFOLLOW))
		return false;
	time_t age = time(NULL) - mark.st_mtime;
	return age >= 0 && age < RETRY_S;
}

static void mark(int directory, const char *name)
{
	int file = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (file < 0)
		return;
	futimens(file, NULL);
	close(file);
}

static int start_and_connect(const struct command *command, int directory, unsigned char token[TOKEN_BYTES])
{
	if (marked_lately(directory, FAILED))
		return -1;
	/* One of the many wrappers of a parallel build starts it, the others wait here. */
	int lock = openat(directory, "start.lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (lock < 0)
		return -1;
	while (flock(lock, LOCK_EX) < 0 && errno == EINTR)
		;
	int daemon = try_connect(directory, token);
	if (daemon < 0 && !marked_lately(directory, FAILED)) {
		if (start(command, directory))
			daemon = try_connect(directory, token);
		if (daemon < 0)
			mark(directory, FAILED);
	}
	close(lock);
	return daemon;
}

int open_daemon(const struct command *command, unsigned char token[TOKEN_BYTES])
{
	char path[PATH_MAX];
	if (!name_directory(path, sizeof path))
		return -1;
	int directory = open_directory(path, true);
	if (directory < 0)
		return -1;
	int daemon = -1;
	if (!marked_lately(directory, SILENT)) {
		daemon = try_connect(directory, token);
		if (daemon < 0)
			daemon = start_and_connect(command, directory, token);
	}
	close(directory);
	return daemon;
}

void mark_silent(void)
{
	char path[PATH_MAX];
	int directory = name_directory(path, sizeof path) ? open_directory(path, false) : -1;
	if (directory < 0)
		return;
	mark(directory, SILENT);
	close(directory);
}
