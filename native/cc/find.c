/* Which program does "gcc" mean, when a link called gcc that comes first on PATH is ourselves? */
#include "cc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


static bool is_us(const struct stat *file)
{
	static struct stat us;
	static int known; /* 1: yes, -1: we cannot tell */
	if (!known)
		known = stat("/proc/self/exe", &us) == 0 ? 1 : -1;
	return known == 1 && us.st_dev == file->st_dev && us.st_ino == file->st_ino;
}

static bool runnable(const char *path, struct stat *file)
{
	return stat(path, file) == 0 && S_ISREG(file->st_mode) && access(path, X_OK) == 0;
}

bool find_compiler(struct command *command, const char *name)
{
	struct stat file;
	command->links[0] = 0;
	if (strchr(name, '/')) {
		if (strlen(name) >= sizeof command->path || !runnable(name, &file))
			return false;
		if (!is_us(&file)) {
			strcpy(command->path, name);
			return true;
		}
		name = strrchr(name, '/') + 1; /* one of our links, by its path */
	}
	const char *path = getenv("PATH");
	if (!path)
		path = "/usr/local/bin:/usr/bin:/bin";
	for (const char *at = path;; at++) {
		size_t length = strcspn(at, ":");
		int wrote = length ? snprintf(command->path, sizeof command->path, "%.*s/%s", (int)length, at, name)
		                   : snprintf(command->path, sizeof command->path, "./%s", name);
		if (wrote > 0 && (size_t)wrote < sizeof command->path && runnable(command->path, &file)) {
			if (!is_us(&file))
				return true;
			if (length < sizeof command->links)
				snprintf(command->links, sizeof command->links, "%.*s", (int)length, at);
		}
		at += length;
		if (!*at)
			return false;
	}
}

_Noreturn void become(const struct command *command)
{
	const char *before = getenv("CORRAL_CC_DEPTH");
	int depth = before ? atoi(before) : 0;
	if (depth >= DEPTH_MAX) {
		dprintf(2, "corral-cc: %s: compiler wrappers call each other in a circle\n", command->argv[0]);
		_exit(127);
	}
	char next[16];
	snprintf(next, sizeof next, "%d", depth + 1);
	setenv("CORRAL_CC_DEPTH", next, 1);
	execv(command->path, command->argv);
	int why = errno;
	dprintf(2, "corral-cc: %s: %s\n", command->path, strerror(why));
	_exit(why == ENOENT ? 127 : 126);
}
