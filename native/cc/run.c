/* A compile that nobody has stored: run it, let its words through, keep a copy, report what it left. */
#include "cc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

extern char **environ;

static volatile pid_t compiler;
static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
#define FORWARDED (sizeof forwarded / sizeof *forwarded)

static void forward(int number)
{
	if (compiler > 0)
		kill(compiler, number);
}

/* One of the compiler's two output streams. */
struct stream {
	int from, to;
	bool open;
	struct buffer kept;              /* what the user saw */
	struct buffer *headers;          /* with -H: where its lines go instead; else NULL */
	struct buffer line;              /* with -H: a line that has no end yet */
	bool guards;                     /* with -H: within the list at its end */
};

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* `-H` prints "... PATH" as a file is entered, "! PATH" and "x PATH" for precompiled ones, and at the end
 * "Multiple include guards may be useful for:" with paths that were there before. */
static bool is_header_line(struct stream *stream, const unsigned char *line, size_t length)
{
	static const char title[] = "Multiple include guards may be useful for:\n";
	size_t mark = 0;
	while (mark < length && line[mark] == '.')
		mark++;
	if (length > 2 && (line[0] == '!' || line[0] == 'x'))
		mark = 1;
	if (mark && mark + 1 < length && line[mark] == ' ')
		return true;
	if (length == sizeof title - 1 && memcmp(line, title, length) == 0)
		return stream->guards = true;
	return stream->guards && memmem(stream->headers->bytes, stream->headers->length, line, length);
}

static void show(struct stream *stream, const unsigned char *bytes, size_t length)
{
	size_t room = CAPTURE_BYTES_MAX + 1 - stream->kept.length;
	put_bytes(&stream->kept, bytes, length < room ? length : room);
	write_all(stream->to, bytes, length);
}

static void let_through(struct stream *stream, const unsigned char *bytes, size_t length)
{
	if (!stream->headers) {
		show(stream, bytes, length);
		return;
	}
	while (length) {
		const unsigned char *end = memchr(bytes, '\n', length);
		size_t part = end ? (size_t)(end - bytes) + 1 : length;
		put_bytes(&stream->line, bytes, part);
		bytes += part;
		length -= part;
		if (!end)
			continue;
		if (!is_header_line(stream, stream->line.bytes, stream->line.length))
			show(stream, stream->line.bytes, stream->line.length);
		else if (!stream->guards)
			put_bytes(stream->headers, stream->line.bytes, stream->line.length);
		stream->line.length = 0;
	}
}

/* False at the end of the stream, or when there is nothing now. */
static bool drain(struct stream *stream)
{
	unsigned char piece[65536];
	ssize_t got = read(stream->from, piece, sizeof piece);
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return false;
	if (got <= 0) {
		stream->open = false;
		return false;
	}
	let_through(stream, piece, (size_t)got);
	return true;
}

static pid_t start(const char *path, char **argv, struct stream *out, struct stream *err)
{
	int out_pipe[2], err_pipe[2];
	if (pipe2(out_pipe, O_CLOEXEC))
		return -1;
	if (pipe2(err_pipe, O_CLOEXEC)) {
		close(out_pipe[0]);
		close(out_pipe[1]);
		return -1;
	}
	sigset_t held, before;
	sigemptyset(&held);
	for (size_t i = 0; i < FORWARDED; i++)
		sigaddset(&held, forwarded[i]);
	sigprocmask(SIG_BLOCK, &held, &before);
	pid_t child = vfork();
	if (child == 0) {
		sigprocmask(SIG_SETMASK, &before, NULL);
		dup2(out_pipe[1], 1);
		dup2(err_pipe[1], 2);
		execve(path, argv, environ);
		_exit(127);
	}
	compiler = child;
	for (size_t i = 0; child > 0 && i < FORWARDED; i++) {
		struct sigaction now;
		/* One that our parent ignores, as nohup does, stays ignored. */
		if (sigaction(forwarded[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL) {
			now.sa_handler = forward;
			now.sa_flags = SA_RESTART;
			sigaction(forwarded[i], &now, NULL);
		}
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(out_pipe[1]);
	close(err_pipe[1]);
	out->from = out_pipe[0];
	err->from = err_pipe[0];
	fcntl(out->from, F_SETFL, O_NONBLOCK);
	fcntl(err->from, F_SETFL, O_NONBLOCK);
	return child;
}

/* Until the compiler has ended and what it wrote is read; something that it left running may hold the pipes. */
static int wait_for(pid_t child, struct stream *out, struct stream *err)
{
	int status = 0, watch = (int)syscall(SYS_pidfd_open, child, 0);
	bool running = true;
	while (running && (out->open || err->open)) {
		struct pollfd events[] = {{.fd = out->open ? out->from : -1, .events = POLLIN},
		                          {.fd = err->open ? err->from : -1, .events = POLLIN},
		                          {.fd = watch, .events = POLLIN}};
		if (poll(events, 3, watch < 0 ? 100 : -1) < 0 && errno != EINTR)
			break;
		if (events[1].revents)
			drain(err);
		if (events[0].revents)
			drain(out);
		if (events[2].revents || watch < 0)
			running = waitpid(child, &status, WNOHANG) == 0;
	}
	while (running && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	while (err->open && drain(err))
		;
	while (out->open && drain(out))
		;
	if (err->line.length)
		show(err, err->line.bytes, err->line.length);
	return status;
}

static bool read_memory_file(int file, struct buffer *to)
{
	struct stat found;
	if (fstat(file, &found) || found.st_size > DEPENDENCIES_BYTES_MAX)
		return false;
	unsigned char piece[65536];
	ssize_t got;
	for (off_t at = 0; (got = pread(file, piece, sizeof piece, at)) > 0; at += got)
		put_bytes(to, piece, (size_t)got);
	return got == 0 && !to->failed;
}

static _Noreturn void leave(int status)
{
	if (WIFSIGNALED(status)) {
		struct rlimit no_core = {0, 0};
		int number = WTERMSIG(status);
		setrlimit(RLIMIT_CORE, &no_core); /* the compiler has dumped its own, we would overwrite it */
		signal(number, SIG_DFL);
		raise(number);
		_exit(128 + number);
	}
	_exit(WEXITSTATUS(status));
}

struct plan {
	uint64_t id;
	uint32_t flags, memory_word;     /* which word of argv ends with the name of the memory file, 0 for none */
	char **argv;
	char memory_name[32], word[64];
	int memory;
};

static bool read_plan(const struct command *command, struct reader *answer, struct plan *plan)
{
	uint32_t length, count = 1;
	plan->id = take_u64(answer);
	plan->flags = take_u32(answer);
	plan->memory_word = take_u32(answer);
	plan->memory = -1;
	char *words = (char *)take_block(answer, &length);
	if (answer->failed || (length && words[length - 1]))
		return false;
	for (uint32_t i = 0; i < length; i++)
		count += !words[i];
	plan->argv = calloc(count + 1, sizeof *plan->argv);
	if (!plan->argv || plan->memory_word >= count)
		return false;
	plan->argv[0] = command->argv[0];
	for (uint32_t i = 1; i < count; i++, words += strlen(words) + 1)
		plan->argv[i] = words;
	if (plan->memory_word) {
		/* A file without a place: no directory to be there, no disk to be full, nothing to remove. */
		plan->memory = memfd_create("dependencies", 0);
		snprintf(plan->memory_name, sizeof plan->memory_name, "/proc/self/fd/%d", plan->memory);
		/* The word is empty, or a flag that takes its value joined (-clang:). */
		int wrote = snprintf(plan->word, sizeof plan->word, "%s%s", plan->argv[plan->memory_word], plan->memory_name);
		if (wrote < 0 || (size_t)wrote >= sizeof plan->word)
			return false;
		plan->argv[plan->memory_word] = plan->word;
	}
	return !plan->memory_word || (plan->memory >= 0 && access(plan->memory_name, W_OK) == 0);
}

_Noreturn void run_and_report(const struct command *command, int daemon, const unsigned char token[TOKEN_BYTES],
                              struct reader *answer)
{
	struct plan plan;
	struct buffer dependencies = {0}, report = {0};
	struct stream out = {.to = 1, .open = true}, err = {.to = 2, .open = true};
	if (!read_plan(command, answer, &plan)) {
		close(daemon);
		become(command);
	}
	if (plan.flags & RUN_HEADER_LIST)
		err.headers = &dependencies;
	signal(SIGCHLD, SIG_DFL);
	uint64_t began = nanoseconds(CLOCK_REALTIME), began_steady = nanoseconds(CLOCK_MONOTONIC);
	pid_t child = start(command->path, plan.argv, &out, &err);
	if (child < 0) {
		close(daemon);
		if (plan.memory >= 0)
			close(plan.memory);
		become(command);
	}
	int status = wait_for(child, &out, &err);
	uint64_t lasted_steady = nanoseconds(CLOCK_MONOTONIC) - began_steady, ended = nanoseconds(CLOCK_REALTIME);
	bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
	if (!well && plan.memory >= 0 && err.kept.length &&
	    memmem(err.kept.bytes, err.kept.length, plan.memory_name, strlen(plan.memory_name))) {
		/* It failed over what we added: once more, as it was asked for. */
		close(daemon);
		close(plan.memory);
		for (size_t i = 0; i < FORWARDED; i++)
			if (compiler)
				signal(forwarded[i], SIG_DFL);
		become(command);
	}
	bool whole = !out.kept.failed && !err.kept.failed && !dependencies.failed &&
	             out.kept.length <= CAPTURE_BYTES_MAX && err.kept.length <= CAPTURE_BYTES_MAX;
	if (well && plan.memory >= 0)
		whole = read_memory_file(plan.memory, &dependencies) && whole;
	put_u32(&report, 0);
	unsigned char head[4] = {PROTOCOL, ASK_REPORT, whole, WIFSIGNALED(status)};
	put_bytes(&report, head, sizeof head);
	put_bytes(&report, token, TOKEN_BYTES);
	put_u64(&report, plan.id);
	put_u32(&report, WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 128u + (uint32_t)WTERMSIG(status));
	put_u64(&report, began);
	put_u64(&report, ended);
	put_u64(&report, lasted_steady);
	put_block(&report, out.kept.bytes, whole ? out.kept.length : 0);
	put_block(&report, err.kept.bytes, whole ? err.kept.length : 0);
	put_block(&report, dependencies.bytes, whole ? dependencies.length : 0);
	size_t length;
	/* The daemon takes its copies of the outputs before it says "done": the next line of make may change them. */
	if (send_frame(daemon, &report) && well && !receive_frame(daemon, &length) && errno == ETIMEDOUT)
		mark_silent();
	leave(status);
}
