/* The kernel modules that the initramfs carries: `/modules/order` names them, one a line, dependencies first. A name
 * behind "vsock:" is only loaded for a machine that is reached by vsock. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

static void load(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "/modules/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
        die("cannot load", path);
    close(fd);
    unlink(path); /* its memory is worth more */
}

void load_modules(const struct options *o) {
    char line[96];
    FILE *order = fopen("/modules/order", "re");
    if (order == NULL)
        return; /* a kernel with everything built in */
    while (fgets(line, sizeof line, order)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "vsock:", 6))
            load(line);
        else if (o->vsock_port)
            load(line + 6);
    }
    fclose(order);
}
