/* The epoll loop, the table of streams, and the ways in which everything ends. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define BUCKETS 256
#define BATCH 64

static int epoll = -1;
static struct source link_source, signal_source;
static bool link_writes;
static struct stream *bucket[BUCKETS];
static struct stream *graveyard;
static size_t open_streams;

uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void *must_alloc(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (memory == NULL)
        violation("out of memory");
    return memory;
}

/* The stream ended: nothing of what runs here may outlive it. */
void end_everything(void) {
    if (getpid() == 1) {
        kill(-1, SIGKILL);
        _exit(0); /* the kernel ends a PID namespace with its init */
    }
    uint64_t deadline = now_us() + KILL_PATIENCE_MS * 1000ULL;
    for (unsigned round = 0; now_us() < deadline; round++) {
        kill_tree_round(getpid(), round, NULL);
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0 && errno == ECHILD)
            _exit(0);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    _exit(1);
}

void violation(const char *what) {
    dprintf(2, "corral-agent: %s; everything ends here\n", what);
    end_everything();
}

static void abandon(struct stream *s) {
    struct frame f = {T_ABANDON, s->id, 0, NULL};
    switch (s->kind) {
    case STREAM_EXEC: abandon_exec(s); break;
    case STREAM_PUT: on_put_frame(s, &f); break;
    case STREAM_GET: on_get_frame(s, &f); break;
    }
}

/* A snapshot resets every vsock. What ran for the old stream has no reader left, so it ends; the walls stay. */
void stream_gone(void) {
    if (settings.steward < 0 || (errno != ENOTCONN && errno != ECONNRESET))
        end_everything();
    each_stream(abandon);
    close_source(&link_source);
    link_writes = false;
    link_open(new_stream());
    link_source.fd = link_fd();
    watch(&link_source, false);
}

static void control(struct source *s, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = s};
    if (epoll_ctl(epoll, operation, s->fd, &event) < 0)
        violation("epoll_ctl failed");
}

void watch(struct source *s, bool for_writing) {
    if (s->fd >= 0 && !s->watched) {
        control(s, EPOLL_CTL_ADD, for_writing ? EPOLLOUT : EPOLLIN);
        s->watched = true;
    }
}

void unwatch(struct source *s) {
    if (s->fd >= 0 && s->watched)
        control(s, EPOLL_CTL_DEL, 0);
    s->watched = false;
}

void close_source(struct source *s) {
    if (s->fd >= 0) {
        unwatch(s);
        close(s->fd);
        s->fd = -1;
    }
}

/* A kernel that was restored (gVisor's) may have forgotten that it was to tell us of the link. */
void watch_link_again(void) {
    unwatch(&link_source);
    watch(&link_source, false);
    link_writes = false;
}

void stream_add(struct stream *s, uint32_t id, enum stream_kind kind) {
    s->id = id;
    s->kind = kind;
    s->next = bucket[id % BUCKETS];
    bucket[id % BUCKETS] = s;
    open_streams++;
}

struct stream *stream_find(uint32_t id) {
    struct stream *s = bucket[id % BUCKETS];
    while (s && s->id != id)
        s = s->next;
    return s;
}

void stream_remove(struct stream *dead) {
    struct stream **at = &bucket[dead->id % BUCKETS];
    while (*at != dead)
        at = &(*at)->next;
    *at = dead->next;
    dead->next = graveyard;
    dead->dead = true;
    graveyard = dead;
    open_streams--;
}

size_t streams_open(void) { return open_streams; }

void each_stream(void (*visit)(struct stream *)) {
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct stream *s = bucket[i], *next; s; s = next) {
            next = s->next;
            visit(s);
        }
}

static void bury(void) {
    while (graveyard) {
        struct stream *s = graveyard;
        graveyard = s->next;
        switch (s->kind) {
        case STREAM_EXEC: free_exec_stream(s); break;
        case STREAM_PUT: free_put(s); break;
        case STREAM_GET: free_get(s); break;
        }
    }
}

static void on_stream_frame(const struct frame *f) {
    struct stream *s = stream_find(f->stream);
    if (s == NULL)
        return; /* it ended while this frame was on its way */
    switch (s->kind) {
    case STREAM_EXEC: on_exec_frame(s, f); break;
    case STREAM_PUT: on_put_frame(s, f); break;
    case STREAM_GET: on_get_frame(s, f); break;
    }
}

static void on_frame(const struct frame *f) {
    if (f->type != T_RESEED && settings.ready == (f->type == T_SETUP))
        violation("SETUP must come first and once");
    bool opens = f->type == T_EXEC || f->type == T_PUT || f->type == T_GET;
    if (opens && (stream_find(f->stream) || streams_open() >= STREAMS_MAX))
        violation("a stream that is open already, or too many");
    switch (f->type) {
    case T_SETUP: on_setup(f); break;
    case T_PING: send_frame(T_PONG, f->stream, NULL, 0); break;
    case T_RESET: on_reset(f); break;
    case T_RESEED: on_reseed(f); break;
    case T_EXEC: on_exec(f); break;
    case T_PUT: on_put(f); break;
    case T_GET: on_get(f); break;
    case T_STAT: on_stat(f); break;
    case T_SPACE: on_space(f); break;
    default: on_stream_frame(f);
    }
}

static void on_link(struct source *s) {
    struct frame f;
    (void)s;
    if (!link_read()) {
        stream_gone();
        return;
    }
    while (link_next(&f))
        on_frame(&f);
    link_compact();
}

static void on_signal(struct source *s) {
    struct signalfd_siginfo got;
    while (read(s->fd, &got, sizeof got) == sizeof got)
        if (got.ssi_signo != SIGCHLD)
            end_everything();
    reap_children();
}

static void open_sources(void) {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    if (getpid() != 1) { /* an init is deaf to these from inside, and shall stay so */
        sigaddset(&wanted, SIGTERM);
        sigaddset(&wanted, SIGINT);
        sigaddset(&wanted, SIGHUP);
    }
    sigprocmask(SIG_SETMASK, &wanted, NULL);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    signal_source = (struct source){signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), false, on_signal, NULL};
    link_source = (struct source){link_fd(), false, on_link, NULL};
    if (epoll < 0 || signal_source.fd < 0)
        violation("epoll or signalfd is missing");
    watch(&signal_source, false);
    watch(&link_source, false);
}

/* The host does not read: do nothing else until it does. Its own credit keeps this from happening to one exec only. */
static void flush(void) {
    bool up = link_flush();
    while (up && link_queued() > OUT_HIGH_BYTES) {
        struct pollfd p = {link_fd(), POLLOUT, 0};
        poll(&p, 1, -1);
        up = link_flush();
    }
    if (!up)
        stream_gone();
    if (link_writes != (link_queued() > 0)) {
        link_writes = !link_writes;
        control(&link_source, EPOLL_CTL_MOD, EPOLLIN | (link_writes ? EPOLLOUT : 0));
    }
}

void loop_run(void) {
    struct epoll_event events[BATCH];
    open_sources();
    for (;;) {
        int count = epoll_wait(epoll, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            struct source *s = events[i].data.ptr;
            if (s == &link_source && !(events[i].events & ~(uint32_t)EPOLLOUT))
                continue; /* only room to write: flush() below */
            if (s->fd >= 0 && s->watched)
                s->on_ready(s);
            if (link_queued() > OUT_HIGH_BYTES)
                flush();
        }
        flush();
        bury();
        while (gets_starved()) {
            each_stream(resume_get);
            flush();
            bury();
        }
    }
}
