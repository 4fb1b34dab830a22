/* corral-cc: the fast path of cached compiles. It asks the daemon; on any doubt it becomes the compiler.
 *
 * One rule stands above all: it never breaks a build. Whatever goes wrong between us and the daemon ends in
 * execv() of the real compiler with the arguments that we were given.
 */
#ifndef CORRAL_CC_H
#define CORRAL_CC_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL 1                       /* docs/reference/compile-protocol.md */
#define TOKEN_BYTES 32
#define REQUEST_BYTES_MAX (4u << 20)     /* more argv and environment than this: not for us */
#define REPLY_BYTES_MAX (64u << 20)
#define CAPTURE_BYTES_MAX (1u << 20)     /* diagnostics that are kept; a result with more is not stored */
#define DEPENDENCIES_BYTES_MAX (8u << 20)
#ifndef SILENCE_MS
#define SILENCE_MS 10000                 /* a daemon that says nothing for so long is given up */
#endif
#define START_MS 15000                   /* a daemon that is not ready by then counts as failed */
#define RETRY_S 30                       /* how long a failed start, or a silent daemon, is remembered */
#define DEPTH_MAX 8                      /* wrappers that call wrappers */

enum { ASK_COMPILE = 1, ASK_REPORT = 2 };
enum { ANSWER_HIT = 1, ANSWER_PASS = 2, ANSWER_RUN = 3, ANSWER_DONE = 4, ANSWER_WAIT = 5, ANSWER_NOTE = 6 };
enum { STDERR_IS_TERMINAL = 1 };
enum { RUN_DEPENDENCIES = 1, RUN_HEADER_LIST = 2 };
/* RUN_DEPENDENCIES: a word of argv is continued with the name of a memory file, which goes into the report.
 * RUN_HEADER_LIST: -H was added; its lines on stderr are ours, not the user's. */

struct buffer {
	unsigned char *bytes;
	size_t length, room;
	bool failed;                     /* out of memory or over a limit: give the whole thing up */
};

void put_bytes(struct buffer *to, const void *bytes, size_t length);
void put_u32(struct buffer *to, uint32_t value);
void put_u64(struct buffer *to, uint64_t value);
void put_block(struct buffer *to, const void *bytes, size_t length); /* length and bytes */

struct reader {
	const unsigned char *at, *end;
	bool failed;
};

uint32_t take_u32(struct reader *from);
uint64_t take_u64(struct reader *from);
const unsigned char *take_block(struct reader *from, uint32_t *length);

/* A compiler, and how it is called. argv[0] is its absolute path unless it was named with a slash. */
struct command {
	char path[PATH_MAX];
	char **argv;
	int argc;
	char links[PATH_MAX];            /* the directory of links that we were found in, or "" */
};

/* Find the program that `name` means, never ourselves. False: there is none. */
bool find_compiler(struct command *command, const char *name);
_Noreturn void become(const struct command *command);

/* Connect to this user's daemon, start it if there is none. -1: there is none and it cannot be started now. */
int open_daemon(const struct command *command, unsigned char token[TOKEN_BYTES]);

/* The daemon said nothing for SILENCE_MS: the wrappers of the next RETRY_S shall not wait for it, too. */
void mark_silent(void);

bool send_frame(int daemon, const struct buffer *frame);
/* Wait for the next answer that is not ANSWER_WAIT; a note for the user is printed. NULL: none came; errno is ETIMEDOUT
 * when the daemon was silent for too long. The caller frees it. */
unsigned char *receive_frame(int daemon, size_t *length);
bool write_all(int descriptor, const void *bytes, size_t length);

/* Run the compiler with captured output, report to the daemon, leave with the compiler's status. */
_Noreturn void run_and_report(const struct command *command, int daemon, const unsigned char token[TOKEN_BYTES],
                              struct reader *answer);

#endif
