/* What the agent's files share. One process, one thread, one epoll loop; every exec has a keeper process. */
#ifndef CORRAL_AGENT_H
#define CORRAL_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

#define OUT_HIGH_BYTES 1048576 /* queued for the host; beyond it the agent waits for the host to read */
#define LEFTOVER_DRAIN_MS 200  /* for descendants that are about to end when the command itself has ended */
#define KILL_PATIENCE_MS 10000 /* for SIGKILL to have an effect */
#define STARTED_DELAY_MS 20    /* a command that ends sooner is reported in one message */
#define ORDER_BYTES_MAX 32768  /* an EXEC up to this goes to a waiting keeper, a larger one to a new keeper */
#define SPARE_KEEPERS_MAX 16   /* keepers that wait for their next exec; forking one costs more than all the rest */
#define DRAIN_BYTES_MAX 4194304 /* read after an exec's end; more can only come from a stranger to its tree */

/* ---- decode.c: bytes to values; pure, fuzzed ---- */

struct reader {
    uint8_t *at, *end;
    bool bad;
};

struct frame {
    uint8_t type;
    uint32_t stream, length;
    uint8_t *payload;
};

struct mount_request {
    bool fresh;
    uint64_t size_bytes, files;
    char *path;
};

struct limit_request {
    uint32_t resource;
    uint64_t soft, hard;
};

struct setup_request {
    uint32_t version, flags, grace_ms;
    char *host_name;
    uint32_t mounts, folders, limits, seccomp_bytes;
    struct mount_request *mount;
    char **folder;
    struct limit_request *limit;
    uint8_t *seccomp;
};

struct exec_request {
    uint8_t flags;
    uint16_t rows, columns;
    uint32_t uid, gid;
    char *cwd;
    char **argv, **env;
};

struct reseed_request {
    uint64_t unix_ns;
    char *host_name;
    uint32_t entropy_bytes;
    uint8_t *entropy;
};

struct entry_request {
    uint8_t kind, executable;
    uint64_t size;
    char *path, *target;
};

struct get_request {
    uint64_t total_bytes, entries, file_bytes;
    uint32_t depth;
    char *path;
};

uint8_t read_u8(struct reader *);
uint16_t read_u16(struct reader *);
uint32_t read_u32(struct reader *);
uint64_t read_u64(struct reader *);
char *read_string(struct reader *);
bool reader_done(const struct reader *);
struct reader reader_of(const struct frame *);
/* The next frame in [at, end): 1 and its size in *used, 0 when it is not complete, -1 when it is malformed. */
int cut_frame(uint8_t *at, uint8_t *end, struct frame *, size_t *used);
bool decode_setup(const struct frame *, struct setup_request *);
void free_setup(struct setup_request *);
bool decode_exec(const struct frame *, struct exec_request *);
void free_exec(struct exec_request *);
bool decode_entry(const struct frame *, struct entry_request *);
bool decode_get(const struct frame *, struct get_request *);
bool decode_reseed(const struct frame *, struct reseed_request *);
bool path_allowed(const char *);

/* ---- link.c: the stream to the host ---- */

void link_open(int fd);   /* whatever was queued for an earlier stream is gone */
int link_fd(void);
bool link_read(void);  /* false: the stream ended */
bool link_next(struct frame *);
void link_compact(void);
bool link_flush(void); /* false: the stream ended */
size_t link_queued(void);
void send_frame(uint8_t type, uint32_t stream, const void *payload, uint32_t length);
void send_u32(uint8_t type, uint32_t stream, uint32_t number);
void send_sentence(uint8_t type, uint32_t stream, const void *head, uint32_t head_bytes, const char *sentence);
uint8_t *reserve_payload(uint32_t length); /* room for a frame of up to `length`; then send_reserved or nothing */
void send_reserved(uint8_t type, uint32_t stream, uint32_t length);

/* ---- loop.c ---- */

struct source {
    int fd; /* -1: closed */
    bool watched;
    void (*on_ready)(struct source *);
    void *owner;
};

_Noreturn void loop_run(void);
void watch(struct source *, bool for_writing);
void watch_link_again(void);
void unwatch(struct source *);
void close_source(struct source *);
_Noreturn void violation(const char *what);
_Noreturn void end_everything(void);
void stream_gone(void); /* a read or write of the link has failed, errno says how: comes back with a new stream, or never */
uint64_t now_us(void);
void *must_alloc(size_t);

enum stream_kind { STREAM_EXEC, STREAM_PUT, STREAM_GET };

struct stream {
    struct stream *next;
    uint32_t id;
    enum stream_kind kind;
    bool dead;
};

void stream_add(struct stream *, uint32_t id, enum stream_kind);
struct stream *stream_find(uint32_t id);
void stream_remove(struct stream *); /* freed after the current batch of events */
size_t streams_open(void);
void each_stream(void (*)(struct stream *));

/* ---- setup.c ---- */

struct settings {
    bool ready;
    int steward;                       /* socket to process 1 of our machine; -1: there is none */
    int memory_events, process_events; /* files of the control group around us; -1: not given */
    bool no_subreapers; /* gVisor's kernel of 2022: whoever loses his parent becomes a child of ours */
    uint32_t grace_ms;
    uint32_t folders, limits;
    struct folder {
        int fd; /* kept open, so that whatever happens to the path later, RESET empties this folder and no other */
        char *path;
        mode_t mode;
    } *folder;
    struct limit_request *limit;
};
extern struct settings settings;

void on_setup(const struct frame *);

/* ---- exec.c ---- */

void on_exec(const struct frame *);
void on_exec_frame(struct stream *, const struct frame *);
void on_keeper_ready(struct source *); /* it says something, or is lost */
void abandon_exec(struct stream *);    /* nobody waits for it any more: its tree is killed */

/* ---- keeper.c: the process that starts an exec and owns its tree ---- */

struct launch { /* of a keeper's first exec; it lives in the memory that fork copied. request is NULL for a spare */
    const struct exec_request *request;
    int control, in, out, err;
};

enum report_kind { REPORT_STARTED, REPORT_NOT_STARTED, REPORT_ENDED };
enum launch_stage { STAGE_EXEC, STAGE_CWD, STAGE_USER, STAGE_TERMINAL, STAGE_LIMITS, STAGE_PROCESS };

struct report { /* keeper to agent, one packet */
    uint8_t kind, started, how, value, flags, stage;
    int32_t pid, error;
    uint64_t wall_us, user_us, system_us, peak_bytes;
};

enum order_kind { ORDER_SIGNAL, ORDER_KILL, ORDER_EXEC };

struct order { /* agent to keeper, one packet; behind ORDER_EXEC the EXEC's payload, with in, out and err */
    uint8_t kind, signal;
    uint32_t grace_ms;
};

_Noreturn void keeper_main(struct launch *);

/* ---- keepers.c ---- */

/* A keeper process and our end of its control socket. Never freed, only used again: an event of the same batch may
 * still name it. */
struct keeper {
    struct keeper *next; /* among those that wait, or are unused */
    pid_t pid;
    int stat; /* its state, from /proc */
    struct source control;
    struct exec *exec; /* NULL while it waits for the next one */
};

struct keeper *keeper_for(const struct frame *, struct launch *); /* who starts that EXEC; NULL and errno */
void order(struct keeper *, struct order);                        /* nothing, when there is none */
void give_back(struct keeper *, bool fit);                        /* it waits for its next exec, if it is fit to */
void dismiss(struct keeper *);                                    /* it ends, and kills its tree */
void start_spare_keeper(void);
bool spare_keepers_run(void); /* none of them is stopped or gone */
bool is_keeper(pid_t);
void forget_keeper(pid_t); /* it is not reaped yet, and no keeper any more */
bool only_keepers_are_children(void);
void reap_children(void);
void kill_orphans(void); /* a keeper was killed, or cannot adopt: its tree is ours, and what is under no other one goes */

/* ---- tree.c: processes by ancestry ---- */

/* Signal every descendant of `root` that `spared` (which may be NULL) does not spare together with its own
 * descendants. Returns how many live ones there were, -1 when /proc cannot be read. */
int signal_tree(pid_t root, int signal, bool (*spared)(pid_t));
int open_process(pid_t);  /* its /proc/PID/stat, which may be read again and again; -1 when there is none */
char process_state(int stat); /* as in /proc: R, S, T, Z, ...; 0 when it has ended */
int kill_tree_round(pid_t root, unsigned round, bool (*spared)(pid_t));

/* ---- reseed.c: what the agent asks of a steward ---- */

enum steward_order { STEWARD_STREAM, STEWARD_RESEED }; /* the first byte of a message */

void on_reseed(const struct frame *);
int new_stream(void); /* waits for it; ends everything when there is none */

/* ---- put.c, get.c, space.c, reset.c ---- */

void on_put(const struct frame *);
void on_put_frame(struct stream *, const struct frame *);
void free_put(struct stream *);
void on_get(const struct frame *);
void on_get_frame(struct stream *, const struct frame *);
void free_get(struct stream *);
void resume_get(struct stream *);
size_t gets_starved(void); /* those that stopped because the host has much to read */
void on_stat(const struct frame *);
void on_space(const struct frame *);
void on_reset(const struct frame *);
bool make_new(char *left, size_t size); /* false, and why in `left` (may be NULL): it is not as good as new */
void free_exec_stream(struct stream *);
void file_error(uint32_t stream, uint32_t code, const char *format, ...) __attribute__((format(printf, 3, 4)));
void file_errno(uint32_t stream, int error, const char *path);
bool is_kernel_file_system(int fd);

#endif
