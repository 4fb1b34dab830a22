/* What is said between the host and a guest before its agent takes over; sandboxes/guest/greeting.py is the other end.
 *
 * Guest to host: HELLO, as soon as everything that does not depend on the sandbox is done. A guest that is frozen
 * here has nothing of its own yet: every clone of it gets its own GO.
 * Host to guest: one GO. After it the stream is the agent's. Everything little endian. */
#ifndef CORRAL_GUEST_H
#define CORRAL_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define HELLO "corral-guest 1\n"
#define GO_MAGIC "corralgo"
#define ENTROPY_BYTES 64
#define HOST_NAME_BYTES 64
#define STREAM_PORT "corral.agent" /* of virtio-serial */

struct go {
    char magic[8];
    uint64_t unix_ns;      /* the time of day */
    uint64_t memory_bytes; /* what the sandbox may use; 0: all that there is */
    uint32_t processes;    /* how many it may have; 0: no limit */
    uint32_t reserved;
    uint8_t entropy[ENTROPY_BYTES];
    char host_name[HOST_NAME_BYTES]; /* closed by NUL */
} __attribute__((packed));

struct options { /* of the kernel's command line: corral.link=vsock:PORT, corral.root=DEVICE, corral.fs=TYPE */
    unsigned vsock_port;   /* of the host; 0: virtio-serial */
    char root[64], fs[16]; /* block device and file system of the root image */
};

struct box_group { /* descriptors of the control group that bounds the sandbox */
    int procs, memory_events, pids_events, memory_max, pids_max;
};

/* guest.c */
_Noreturn void die(const char *what, const char *which);
void nap_ms(unsigned);
/* modules.c */
void load_modules(const struct options *);
/* root.c */
void mount_system(void);
void open_console(void);
void mount_root(const struct options *);
void enter_root(void); /* as process 1 of a PID namespace */
/* stream.c */
int open_stream(const struct options *);
/* steward.c */
void await_order(int agent);                                     /* the agent has come to where it needs its stream */
void serve_agent(const struct options *, int agent, int stream); /* until the agent ends; its first stream is this one */
void make_ids(void);
bool renew_ids(void);
void bind_ids(const char *root);
/* wake.c */
void set_clock(uint64_t unix_ns);
void stir(const uint8_t *entropy, unsigned bytes);
void come_alive(const struct go *);
struct box_group make_group(void);
void bound_group(const struct box_group *, const struct go *);

#endif
