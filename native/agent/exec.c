/* The agent's side of an exec: pipes or a terminal, credit, and the order in which its end is told. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

struct exec {
    struct stream stream;
    struct keeper *keeper;
    struct source out, err, in;
    bool terminal, told_started, ended, in_end, reset;
    uint8_t *pending; /* input that the command has not taken yet; at most a window */
    uint32_t pending_at, pending_have, in_owed;
    uint32_t credit; /* output that the host will take */
    uint64_t drained;
    struct report report;
    char name[128], cwd[128];
};

static const char *why(const struct exec *e, const struct report *r) {
    static char text[512];
    switch (r->stage) {
    case STAGE_CWD:
        snprintf(text, sizeof text, "cannot enter the working directory \"%s\": %s", e->cwd, strerror(r->error));
        return text;
    case STAGE_USER: snprintf(text, sizeof text, "cannot become the asked user: %s", strerror(r->error)); return text;
    case STAGE_TERMINAL: snprintf(text, sizeof text, "cannot take the terminal: %s", strerror(r->error)); return text;
    case STAGE_LIMITS: snprintf(text, sizeof text, "cannot set a resource limit: %s", strerror(r->error)); return text;
    case STAGE_PROCESS: snprintf(text, sizeof text, "cannot start a process: %s", strerror(r->error)); return text;
    default: break;
    }
    switch (r->error) {
    case ENOENT: snprintf(text, sizeof text, "no such command \"%s\"", e->name); break;
    case EACCES: snprintf(text, sizeof text, "\"%s\" is not an executable file", e->name); break;
    case ENOEXEC: snprintf(text, sizeof text, "\"%s\" is not a program of this machine and has no #! line", e->name); break;
    case E2BIG: snprintf(text, sizeof text, "the arguments and the environment of \"%s\" are too long", e->name); break;
    default: snprintf(text, sizeof text, "cannot start \"%s\": %s", e->name, strerror(r->error));
    }
    return text;
}

static void refuse(uint32_t stream, int error, const char *sentence) {
    uint32_t code = (uint32_t)error;
    send_sentence(T_NOT_STARTED, stream, &code, sizeof code, sentence);
}

/* ---- input ---- */

static void owe_credit(struct exec *e, uint32_t bytes) {
    e->in_owed += bytes;
    if (e->in_owed >= WINDOW_BYTES / 2) {
        send_u32(T_CREDIT, e->stream.id, e->in_owed);
        e->in_owed = 0;
    }
}

static void close_input(struct exec *e) {
    if (e->terminal && e->in.fd >= 0 && !e->ended) {
        static const char end_of_input = 4; /* Ctrl-D; a terminal's input cannot be closed */
        if (write(e->in.fd, &end_of_input, 1) < 0 && errno != EAGAIN)
            close_source(&e->in);
        e->in_end = false;
        return;
    }
    close_source(&e->in);
    free(e->pending);
    e->pending = NULL;
    e->pending_at = e->pending_have = 0;
}

static uint32_t write_some(struct exec *e, const uint8_t *bytes, uint32_t count) {
    while (e->in.fd >= 0) {
        ssize_t n = write(e->in.fd, bytes, count);
        if (n >= 0)
            return (uint32_t)n;
        if (errno == EAGAIN)
            return 0;
        if (errno != EINTR)
            close_source(&e->in); /* nobody reads it any more */
    }
    return count; /* dropped, as a shell's pipe would; credit flows on, so the host does not hang */
}

static void on_input_ready(struct source *s) {
    struct exec *e = s->owner;
    uint32_t n = write_some(e, e->pending + e->pending_at, e->pending_have - e->pending_at);
    e->pending_at += n;
    owe_credit(e, n);
    if (e->pending_at < e->pending_have)
        return;
    e->pending_at = e->pending_have = 0;
    unwatch(&e->in);
    if (e->in_end)
        close_input(e);
}

static void take_input(struct exec *e, uint8_t *bytes, uint32_t count) {
    if (e->in_end)
        return;
    if (e->pending_have == 0) {
        uint32_t n = write_some(e, bytes, count);
        owe_credit(e, n);
        bytes += n;
        count -= n;
    }
    if (count == 0)
        return;
    if (e->pending == NULL)
        e->pending = must_alloc(WINDOW_BYTES);
    if (e->pending_at) {
        memmove(e->pending, e->pending + e->pending_at, e->pending_have - e->pending_at);
        e->pending_have -= e->pending_at;
        e->pending_at = 0;
    }
    if (count > WINDOW_BYTES - e->pending_have)
        violation("more input than its credit");
    memcpy(e->pending + e->pending_have, bytes, count);
    e->pending_have += count;
    watch(&e->in, true);
}

/* ---- output and end ---- */

enum pumped { PUMPED, NOTHING_NOW, CLOSED, NO_CREDIT };

static enum pumped pump(struct exec *e, struct source *s) {
    uint32_t most = e->credit < DATA_BYTES_MAX ? e->credit : DATA_BYTES_MAX;
    if (most == 0)
        return NO_CREDIT;
    ssize_t n = read(s->fd, reserve_payload(most), most);
    if (n > 0) {
        send_reserved(s == &e->out ? T_STDOUT : T_STDERR, e->stream.id, (uint32_t)n);
        e->credit -= (uint32_t)n;
        e->drained += e->ended ? (uint64_t)n : 0;
        return PUMPED;
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? NOTHING_NOW : CLOSED; /* EIO: a terminal's last user left */
}

/* After the tree's end: what lies in the pipe is sent, then the source is closed. False: it waits for credit. */
static bool drain(struct exec *e, struct source *s) {
    while (s->fd >= 0) {
        enum pumped result = pump(e, s);
        if (result == NO_CREDIT)
            return false;
        if (result != PUMPED || e->drained > DRAIN_BYTES_MAX)
            close_source(s);
    }
    return true;
}

static void tell_started(struct exec *e, const struct report *r) {
    if (!e->told_started)
        send_u32(T_STARTED, e->stream.id, (uint32_t)r->pid);
    e->told_started = true;
}

/* No event of this batch may reach it any more. */
static void retire(struct exec *e) {
    close_source(&e->out);
    close_source(&e->err);
    close_source(&e->in);
    stream_remove(&e->stream);
}

/* The number behind `name` in a file of events of a control group; what it was before when it cannot be read. */
static uint64_t count_events(int fd, const char *name, uint64_t before) {
    char text[512];
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (n < 0)
        return before;
    text[n] = 0;
    char *at = strstr(text, name);
    return at ? strtoull(at + strlen(name), NULL, 10) : before;
}

/* Which limit of the sandbox was hit since somebody asked. Never asked on the clean path. */
static uint8_t limits_hit(void) {
    static uint64_t memory, processes;
    uint64_t memory_now = count_events(settings.memory_events, "oom_kill ", memory);
    uint64_t processes_now = count_events(settings.process_events, "max ", processes);
    uint8_t flags = (uint8_t)((memory_now > memory ? EXIT_OUT_OF_MEMORY : 0) |
                              (processes_now > processes ? EXIT_PROCESS_LIMIT : 0));
    memory = memory_now;
    processes = processes_now;
    return flags;
}

static void finish_if_drained(struct exec *e) {
    struct {
        uint8_t how, value, flags;
        uint64_t numbers[4];
    } __attribute__((packed)) end;
    unwatch(&e->out);
    unwatch(&e->err);
    if (!drain(e, &e->out) || !drain(e, &e->err))
        return; /* CREDIT brings us back */
    const struct report *r = &e->report;
    end.how = r->how;
    end.value = r->value;
    end.flags = r->flags | (r->how != EXIT_STATUS || r->value ? limits_hit() : 0);
    end.numbers[0] = r->wall_us;
    end.numbers[1] = r->user_us;
    end.numbers[2] = r->system_us;
    end.numbers[3] = r->peak_bytes;
    tell_started(e, r);
    retire(e); /* it is still there until the batch ends */
    if (e->reset && r->how == EXIT_STATUS && r->value == 0 && end.flags == 0 && make_new(NULL, 0))
        end.flags = EXIT_RESET;
    send_frame(T_EXIT, e->stream.id, &end, sizeof end);
}

static void on_output_ready(struct source *s) {
    struct exec *e = s->owner;
    switch (pump(e, s)) {
    case CLOSED: close_source(s); break;
    case NO_CREDIT: unwatch(s); break;
    default: break;
    }
}

static void let_go(struct exec *e, bool fit) {
    give_back(e->keeper, fit);
    e->keeper = NULL;
}

static void on_ended(struct exec *e) {
    e->ended = true;
    let_go(e, e->report.flags == 0);
    finish_if_drained(e);
}

void on_keeper_ready(struct source *s) {
    struct keeper *k = s->owner;
    struct exec *e = k->exec;
    struct report r;
    ssize_t n = recv(s->fd, &r, sizeof r, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (e == NULL) {
        dismiss(k); /* a spare has nothing to say: somebody killed it */
    } else if (n != sizeof r) {
        forget_keeper(k->pid); /* its socket closes before its children become ours: until then they are found below it */
        kill_orphans();
        e->report = (struct report){.how = EXIT_SIGNAL, .value = SIGKILL, .flags = EXIT_KEEPER_LOST | EXIT_LEFT_PROCESSES};
        on_ended(e);
    } else if (r.kind == REPORT_STARTED) {
        tell_started(e, &r);
    } else if (r.kind == REPORT_ENDED) {
        reap_children();
        if (settings.no_subreapers && !only_keepers_are_children()) {
            kill_orphans();
            r.flags |= EXIT_LEFT_PROCESSES;
        }
        e->report = r;
        on_ended(e);
    } else {
        refuse(e->stream.id, r.error, why(e, &r));
        let_go(e, true);
        retire(e);
    }
}

/* ---- start ---- */

static bool make_terminal(struct exec *e, const struct exec_request *r, struct launch *l) {
    int unlock = 0;
    struct winsize size = {.ws_row = r->rows, .ws_col = r->columns};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return false;
    e->out.fd = master;
    e->in.fd = fcntl(master, F_DUPFD_CLOEXEC, 3);
    if (e->in.fd < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCSWINSZ, &size) < 0)
        return false;
    l->in = l->out = l->err = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return l->in >= 0;
}

/* A pipe whose end `ours` does not block. */
static bool make_pipe(int ends[2], int ours) {
    return pipe2(ends, O_CLOEXEC) == 0 && fcntl(ends[ours], F_SETFL, O_NONBLOCK) == 0;
}

static bool make_pipes(struct exec *e, const struct exec_request *r, struct launch *l) {
    int ends[2];
    if (r->flags & EXEC_STDIN) {
        if (!make_pipe(ends, 1))
            return false;
        l->in = ends[0];
        e->in.fd = ends[1];
    } else if ((l->in = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        return false;
    if (!make_pipe(ends, 0))
        return false;
    e->out.fd = ends[0];
    l->out = ends[1];
    if (r->flags & EXEC_MERGE) {
        l->err = l->out;
        return true;
    }
    if (!make_pipe(ends, 0))
        return false;
    e->err.fd = ends[0];
    l->err = ends[1];
    return true;
}

static void close_launch(const struct launch *l) {
    /* a terminal is one for all three, a merged pipe one for two */
    if (l->in >= 0)
        close(l->in);
    if (l->out >= 0 && l->out != l->in)
        close(l->out);
    if (l->err >= 0 && l->err != l->out)
        close(l->err);
}

static bool start(struct exec *e, const struct exec_request *r, const struct frame *f) {
    struct launch l = {r, -1, -1, -1, -1};
    bool made = e->terminal ? make_terminal(e, r, &l) : make_pipes(e, r, &l);
    if (made && (e->keeper = keeper_for(f, &l)) != NULL)
        e->keeper->exec = e;
    int error = errno;
    close_launch(&l);
    errno = error;
    return e->keeper != NULL;
}

static struct source source_of(struct exec *e, void (*on_ready)(struct source *)) {
    return (struct source){-1, false, on_ready, e};
}

void on_exec(const struct frame *f) {
    struct exec_request r;
    if (!decode_exec(f, &r))
        violation("a malformed EXEC");
    struct exec *e = must_alloc(sizeof *e);
    e->terminal = r.flags & EXEC_TERMINAL;
    e->reset = r.flags & EXEC_RESET;
    e->credit = WINDOW_BYTES;
    e->out = source_of(e, on_output_ready);
    e->err = source_of(e, on_output_ready);
    e->in = source_of(e, on_input_ready);
    snprintf(e->name, sizeof e->name, "%s", r.argv[0]);
    snprintf(e->cwd, sizeof e->cwd, "%s", r.cwd);
    stream_add(&e->stream, f->stream, STREAM_EXEC);
    if (start(e, &r, f)) {
        watch(&e->out, false);
        watch(&e->err, false);
    } else {
        char text[160];
        int error = errno;
        snprintf(text, sizeof text, "the sandbox cannot start another command: %s", strerror(error));
        refuse(f->stream, error, text);
        retire(e);
    }
    free_exec(&r);
}

/* ---- frames of a running exec ---- */

static void take_credit(struct exec *e, uint32_t bytes) {
    if (bytes > WINDOW_BYTES - e->credit)
        violation("more credit than a window");
    e->credit += bytes;
    if (e->ended) {
        finish_if_drained(e);
    } else if (e->credit) {
        watch(&e->out, false);
        watch(&e->err, false);
    }
}

void on_exec_frame(struct stream *s, const struct frame *f) {
    struct exec *e = (struct exec *)s;
    struct reader r = reader_of(f);
    switch (f->type) {
    case T_STDIN: take_input(e, f->payload, f->length); return;
    case T_STDIN_END:
        e->in_end = true;
        if (e->pending_have == 0)
            close_input(e);
        break;
    case T_SIGNAL: order(e->keeper, (struct order){.kind = ORDER_SIGNAL, .signal = read_u8(&r)}); break;
    case T_KILL: order(e->keeper, (struct order){.kind = ORDER_KILL, .grace_ms = read_u32(&r)}); break;
    case T_CREDIT: take_credit(e, read_u32(&r)); break;
    case T_WINDOW: {
        struct winsize size = {.ws_row = read_u16(&r)};
        size.ws_col = read_u16(&r);
        if (e->terminal && e->out.fd >= 0)
            ioctl(e->out.fd, TIOCSWINSZ, &size);
        break;
    }
    default: violation("a frame that no exec takes");
    }
    if (!reader_done(&r))
        violation("a malformed frame for an exec");
}

void abandon_exec(struct stream *s) {
    struct exec *e = (struct exec *)s;
    if (e->keeper)
        dismiss(e->keeper); /* it kills its tree when its socket closes */
    retire(e);
}

void free_exec_stream(struct stream *s) {
    struct exec *e = (struct exec *)s;
    free(e->pending);
    free(e);
}
