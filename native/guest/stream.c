/* The stream to the host: a port of virtio-serial, or a vsock connection that the guest makes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

#define PORTS "/sys/class/virtio-ports"
#define PORT_TRIES 10000
#define CONNECT_NAP_MS 5
#define VSOCK_FAMILY 40
#define HOST_CID 2

struct vsock_address { /* sockaddr_vm of linux/vm_sockets.h, which musl does not bring */
    unsigned short family, reserved;
    unsigned port, cid;
    unsigned char flags, zero[3];
};

static bool has_our_name(const char *port) {
    char path[128], name[64] = "";
    snprintf(path, sizeof path, PORTS "/%.40s/name", port);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, name, sizeof name - 1);
    close(fd);
    return n > 0 && strncmp(name, STREAM_PORT, strlen(STREAM_PORT)) == 0;
}

static int open_port(void) {
    DIR *ports = opendir(PORTS);
    int fd = -1;
    for (struct dirent *each; ports && fd < 0 && (each = readdir(ports));) {
        char path[64];
        if (each->d_name[0] == '.' || !has_our_name(each->d_name))
            continue;
        snprintf(path, sizeof path, "/dev/%.40s", each->d_name);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (ports)
        closedir(ports);
    return fd;
}

static int connect_to_host(unsigned port) {
    struct vsock_address host = {.family = VSOCK_FAMILY, .port = port, .cid = HOST_CID};
    int fd = socket(VSOCK_FAMILY, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("cannot make", "a vsock");
    if (connect(fd, (struct sockaddr *)&host, sizeof host) == 0)
        return fd;
    close(fd);
    return -1;
}

int open_stream(const struct options *o) {
    int fd;
    if (o->vsock_port) {
        while ((fd = connect_to_host(o->vsock_port)) < 0)
            nap_ms(CONNECT_NAP_MS); /* for as long as the host lets this machine live */
        return fd;
    }
    for (int tries = 0; tries < PORT_TRIES; tries++, nap_ms(1))
        if ((fd = open_port()) >= 0)
            return fd;
    errno = ENODEV;
    die("cannot find the port", STREAM_PORT);
}
