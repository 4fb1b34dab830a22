/* A program in a network of its own, where there is nothing but loopback.
 *
 * What it may call are listening sockets there, at the addresses where it looks for those destinations; they are handed
 * to the worker, which decides and connects outside. Whoever wants to reach the program asks at a unix socket and is
 * handed a connection. So nothing is filtered: there is no way to anywhere else.
 *
 * Descriptors: 3 is the program's own, 4 the line to the worker (SOCK_SEQPACKET), 5 the socket for those who come in;
 * directories that the program sees are 6 and up, in the order of their options. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host.h"

enum { LINE = 4, DOOR = 5, SEEN = 6, CALLS_MAX = 100, BACKLOG = 64 };

static const char *calls[CALLS_MAX], *hosts, *enter;
static struct { const char *path; bool writable; } seen[PREOPENS_MAX];
static unsigned call_count, seen_count, alias_count;

static const char *value_of(const char *text, const char *name) {
  size_t size = strlen(name);
  return strncmp(text, name, size) == 0 && text[size] == '=' ? text + size + 1 : NULL;
}

bool apart_option(const char *text) {
  const char *value;
  bool read_only = (value = value_of(text, "see")) != NULL;
  if (read_only || (value = value_of(text, "write")) != NULL) {
    if (seen_count == PREOPENS_MAX) return false;
    seen[seen_count].path = value, seen[seen_count++].writable = !read_only;
    return true;
  }
  if ((value = value_of(text, "call")) != NULL) {
    if (call_count == CALLS_MAX) return false;
    calls[call_count++] = value;
    return true;
  }
  if ((value = value_of(text, "hosts")) != NULL) return hosts = value, true;
  if ((value = value_of(text, "enter")) != NULL) return enter = value, true;
  return false;
}

static void fail(const char *what) __attribute__((noreturn));
static void fail(const char *what) {
  fprintf(stderr, "corral-wasm-host: %s: %s\n", what, strerror(errno));
  exit(71);
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) fail(path);
  close(fd);
}

static void own_namespaces(void) {
  unsigned user = geteuid(), group = getegid();
  char map[64];
  if (unshare(CLONE_NEWNET | CLONE_NEWNS | (user == 0 ? 0 : CLONE_NEWUSER)) != 0)
    fail("a network of its own for the program");
  if (user != 0) {
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "%u %u 1", user, user);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "%u %u 1", group, group);
    write_file("/proc/self/gid_map", map);
  }
  if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0) fail("mounts of its own for the program");
}

/* -- addresses -- */

union address {
  struct sockaddr any;
  struct sockaddr_in four;
  struct sockaddr_in6 six;
};

/* "10.1.2.3:80" or "[fd00::1]:80". */
static socklen_t address_of(const char *text, union address *to) {
  const char *colon = strrchr(text, ':');
  char host[64];
  size_t size = colon == NULL ? sizeof host : (size_t)(colon - text);
  memset(to, 0, sizeof *to);
  if (size >= sizeof host) return 0;
  memcpy(host, text, size);
  host[size] = 0;
  uint16_t port = htons((uint16_t)atoi(colon + 1));
  if (host[0] == '[' && host[size - 1] == ']') {
    host[size - 1] = 0;
    to->six.sin6_family = AF_INET6, to->six.sin6_port = port;
    return inet_pton(AF_INET6, host + 1, &to->six.sin6_addr) == 1 ? sizeof to->six : 0;
  }
  to->four.sin_family = AF_INET, to->four.sin_port = port;
  return inet_pton(AF_INET, host, &to->four.sin_addr) == 1 ? sizeof to->four : 0;
}

static void loopback_up(int by) {
  struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
  if (ioctl(by, SIOCSIFFLAGS, &lo) != 0) fail("loopback");
}

/* Everything in 127.0.0.0/8 is there already; others become addresses of loopback. */
static void own_address(int by, const union address *address) {
  if (address->any.sa_family == AF_INET6) {
    struct { struct in6_addr address; uint32_t prefix; int interface; } wanted = {
        address->six.sin6_addr, 128, (int)if_nametoindex("lo")};
    int six = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (six < 0 || (ioctl(six, SIOCSIFADDR, &wanted) != 0 && errno != EEXIST)) fail("an IPv6 address on loopback");
    close(six);
  } else if (ntohl(address->four.sin_addr.s_addr) >> 24 != 127) {
    struct ifreq alias = {0};
    snprintf(alias.ifr_name, sizeof alias.ifr_name, "lo:%u", alias_count++);
    memcpy(&alias.ifr_addr, &address->four, sizeof address->four);
    if (ioctl(by, SIOCSIFADDR, &alias) != 0 && errno != EEXIST) fail("an address on loopback");
    ((struct sockaddr_in *)&alias.ifr_netmask)->sin_addr.s_addr = INADDR_NONE;
    if (ioctl(by, SIOCSIFNETMASK, &alias) != 0) fail("an address on loopback");
  }
}

static int listen_for(int by, const char *text) {
  union address address;
  int on = 1;
  socklen_t size = address_of(text, &address);
  if (size == 0) errno = EINVAL, fail(text);
  own_address(by, &address);
  int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 || bind(fd, &address.any, size) != 0 ||
      listen(fd, BACKLOG) != 0)
    fail(text);
  return fd;
}

/* -- files -- */

static void bind_over(const char *source, const char *target) {
  if (mount(source, target, NULL, MS_BIND, NULL) != 0 && errno != ENOENT) fail(target);
}

/* A directory that may not be written is mounted read-only over itself before it is opened. */
static void open_seen(unsigned n) {
  static const struct { unsigned long has, keep; } locked[] = {
      {ST_NOSUID, MS_NOSUID}, {ST_NODEV, MS_NODEV}, {ST_NOEXEC, MS_NOEXEC},
      {ST_NOATIME, MS_NOATIME}, {ST_NODIRATIME, MS_NODIRATIME}, {ST_RELATIME, MS_RELATIME}};
  const char *path = seen[n].path;
  if (!seen[n].writable) {
    struct statvfs has;
    unsigned long flags = MS_BIND | MS_REMOUNT | MS_RDONLY;
    if (mount(path, path, NULL, MS_BIND, NULL) != 0 || statvfs(path, &has) != 0) fail(path);
    for (size_t each = 0; each < sizeof locked / sizeof *locked; each++)
      if (has.f_flag & locked[each].has) flags |= locked[each].keep;
    if (mount(NULL, path, NULL, flags, NULL) != 0) fail(path);
  }
  int fd = open(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) fail(path);
  if (fd != SEEN + (int)n) {
    if (dup2(fd, SEEN + (int)n) < 0) fail(path);
    close(fd);
  }
}

/* -- the way in, and the worker -- */

static void send_descriptors(int to, const void *bytes, size_t size, const int *descriptors, unsigned count) {
  union { struct cmsghdr head; uint8_t room[CMSG_SPACE(sizeof(int) * CALLS_MAX)]; } beside = {0};
  struct iovec part = {(void *)bytes, size};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (count > 0) {
    message.msg_control = &beside, message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(head), descriptors, sizeof(int) * count);
  }
  sendmsg(to, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void let_in(const union address *program, socklen_t size) {
  int asking = accept4(DOOR, NULL, NULL, SOCK_CLOEXEC);
  int connection = socket(program->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (asking >= 0 && connection >= 0 && (connect(connection, &program->any, size) == 0 || errno == EINPROGRESS))
    send_descriptors(asking, "", 1, &connection, 1);
  if (connection >= 0) close(connection);
  if (asking >= 0) close(asking);
}

/* Until the program, or the worker, is gone; the program goes with this process. */
static void keep_door(pid_t child) __attribute__((noreturn));
static void keep_door(pid_t child) {
  union address program;
  socklen_t size = address_of(enter, &program);
  int status, ended = (int)syscall(SYS_pidfd_open, child, 0);
  if (size == 0 || ended < 0) fail("the way in");
  for (;;) {
    struct pollfd waits[] = {{DOOR, POLLIN, 0}, {ended, POLLIN, 0}, {LINE, POLLIN, 0}};
    if (poll(waits, 3, -1) < 0) continue;
    if (waits[1].revents || waits[2].revents) break;
    if (waits[0].revents) let_in(&program, size);
  }
  if (waitpid(child, &status, WNOHANG) != child) _exit(0);
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

void run_apart(char **program, void (*become_small)(void)) {
  int listening[CALLS_MAX];
  if (enter == NULL) exit(64);
  fcntl(LINE, F_SETFD, FD_CLOEXEC);
  fcntl(DOOR, F_SETFD, FD_CLOEXEC);
  for (unsigned n = 0; n < seen_count; n++) /* so that what is opened on the way stays above */
    if (dup2(STDIN_FILENO, SEEN + (int)n) < 0) fail("descriptors");
  own_namespaces();
  int by = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  loopback_up(by);
  for (unsigned n = 0; n < call_count; n++) listening[n] = listen_for(by, calls[n]);
  close(by);
  if (hosts != NULL) bind_over(hosts, "/etc/hosts");
  bind_over("/dev/null", "/etc/resolv.conf");
  for (unsigned n = 0; n < seen_count; n++) open_seen(n);
  become_small();
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* again: changing the user clears it */
  pid_t self = getpid(), child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != self) _exit(0);
    confine_program(true);
    execv(program[0], program);
    fail(program[0]);
  }
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  uint8_t pid[4];
  put32(pid, (uint32_t)child);
  send_descriptors(LINE, pid, sizeof pid, listening, call_count);
  for (unsigned n = 0; n < call_count; n++) close(listening[n]);
  for (unsigned n = 0; n < seen_count; n++) close(SEEN + (int)n);
  close(3);
  keep_door(child);
}
