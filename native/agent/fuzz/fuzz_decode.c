/* libFuzzer target: cuts frames as the link does and decodes every payload as the agent does; all of it is pure.
 * Touches each decoded byte, so that a pointer out of the frame is caught. */
#include <stdlib.h>
#include <string.h>

#include "../agent.h"

static volatile size_t sink;

static void touch(const char *text) {
    if (text)
        sink += strlen(text);
}

static void try_setup(const struct frame *f) {
    struct setup_request s;
    if (decode_setup(f, &s)) {
        touch(s.host_name);
        for (uint32_t i = 0; i < s.mounts; i++)
            touch(s.mount[i].path);
        for (uint32_t i = 0; i < s.folders; i++)
            touch(s.folder[i]);
        for (uint32_t i = 0; i < s.seccomp_bytes; i++)
            sink += s.seccomp[i];
    }
    free_setup(&s);
}

static void try_exec(const struct frame *f) {
    struct exec_request e;
    if (decode_exec(f, &e)) {
        touch(e.cwd);
        for (char **at = e.argv; *at; at++)
            touch(*at);
        for (char **at = e.env; *at; at++)
            touch(*at);
        if (e.argv[0] == NULL)
            abort(); /* an accepted EXEC has a command */
    }
    free_exec(&e);
}

static void try_files(const struct frame *f) {
    struct entry_request e;
    struct get_request g;
    if (decode_entry(f, &e)) {
        touch(e.target);
        if (path_allowed(e.path) && (e.path[0] == '/' || strstr(e.path, "/../") || strncmp(e.path, "../", 3) == 0))
            abort();
    }
    struct reseed_request r;
    if (decode_get(f, &g))
        touch(g.path);
    if (decode_reseed(f, &r)) {
        static volatile uint8_t sink;
        touch(r.host_name);
        for (uint32_t i = 0; i < r.entropy_bytes; i++)
            sink += r.entropy[i];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *bytes = malloc(size ? size : 1), *at = bytes;
    struct frame f;
    size_t used;
    memcpy(bytes, data, size);
    while (cut_frame(at, bytes + size, &f, &used) == 1) {
        try_setup(&f);
        try_exec(&f);
        try_files(&f);
        at += used;
    }
    f = (struct frame){T_EXEC, 1, (uint32_t)size, bytes}; /* and once without a header, to get deep quickly */
    try_setup(&f);
    try_exec(&f);
    try_files(&f);
    free(bytes);
    return 0;
}
