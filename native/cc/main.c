/* corral-cc COMPILER [ARGUMENT]..., or a link to it that is named as the compiler. */
#include "cc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;


static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static bool describe(struct buffer *request, const struct command *command, const unsigned char token[TOKEN_BYTES])
{
	struct stat namespace, root;
	char cwd[PATH_MAX];
	/* Another mount namespace or root: the daemon's paths are not ours. It compares. */
	if (stat("/proc/self/ns/mnt", &namespace) || stat("/", &root) || !getcwd(cwd, sizeof cwd))
		return false;
	mode_t mask = umask(0);
	umask(mask);
	put_u32(request, 0);
	unsigned char head[4] = {PROTOCOL, ASK_COMPILE, isatty(2) ? STDERR_IS_TERMINAL : 0, 0};
	put_bytes(request, head, sizeof head);
	put_bytes(request, token, TOKEN_BYTES);
	put_u32(request, mask);
	put_u64(request, namespace.st_ino);
	put_u64(request, root.st_ino);
	put_u64(request, root.st_dev);
	put_block(request, cwd, strlen(cwd));
	put_block(request, command->path, strlen(command->path));
	/* argv and environ, each word with its NUL, behind their lengths */
	for (int part = 0; part < 2; part++) {
		char **words = part ? environ : command->argv + 1;
		size_t length_at = request->length;
		put_u32(request, 0);
		for (; *words; words++)
			put_bytes(request, *words, strlen(*words) + 1);
		if (request->failed)
			return false;
		size_t length = request->length - length_at - 4;
		for (int i = 0; i < 4; i++)
			request->bytes[length_at + (size_t)i] = (unsigned char)(length >> (8 * i));
	}
	return !request->failed && request->length < REQUEST_BYTES_MAX;
}

static _Noreturn void replay(struct reader *answer)
{
	uint32_t status = take_u32(answer), out_length, err_length;
	const unsigned char *out = take_block(answer, &out_length);
	const unsigned char *err = take_block(answer, &err_length);
	write_all(1, out, out_length);
	write_all(2, err, err_length);
	_exit((int)status);
}

static bool is_sane(struct reader answer)
{
	uint32_t length;
	take_u32(&answer);
	take_block(&answer, &length);
	take_block(&answer, &length);
	return !answer.failed;
}

static void compile(const struct command *command)
{
	unsigned char token[TOKEN_BYTES];
	struct buffer request = {0};
	int daemon = open_daemon(command, token);
	if (daemon < 0)
		return;
	if (describe(&request, command, token) && send_frame(daemon, &request)) {
		size_t length;
		unsigned char *answer = receive_frame(daemon, &length);
		if (answer) {
			struct reader rest = {answer + 1, answer + length, false};
			if (answer[0] == ANSWER_HIT && is_sane(rest))
				replay(&rest);
			if (answer[0] == ANSWER_RUN)
				run_and_report(command, daemon, token, &rest);
		} else if (errno == ETIMEDOUT) {
			mark_silent();
		}
	}
	close(daemon);
}

int main(int argc, char **argv)
{
	static struct command command;
	if (argc < 1)
		return 127;
	const char *name = base_name(argv[0]);
	if (strcmp(name, "corral-cc") == 0) {
		if (argc < 2) {
			dprintf(2, "usage: corral-cc COMPILER [ARGUMENT]..., or a link to it that is named as the compiler\n");
			return 2;
		}
		argv++;
		argc--;
		name = argv[0];
	}
	/* Called by a link with its path: the real compiler is the next one of that name on PATH. */
	command.argv = argv;
	command.argc = argc;
	if (!find_compiler(&command, name)) {
		dprintf(2, "corral-cc: %s: no such compiler on PATH\n", name);
		return 127;
	}
	/* The compiler finds its own parts from argv[0]; by its bare name it would find our link. */
	argv[0] = command.path;
	const char *off = getenv("CORRAL_CC_DISABLE");
	/* Closed standard descriptors: whatever we open would take their place. */
	bool odd = isatty(0) == 0 && errno == EBADF;
	odd = odd || (isatty(1) == 0 && errno == EBADF) || (isatty(2) == 0 && errno == EBADF);
	if (!odd && (!off || !*off || strcmp(off, "0") == 0))
		compile(&command);
	become(&command);
}
