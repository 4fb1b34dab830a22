/* Attacks on a sandbox, from inside: `attack NAME [ARGUMENT]...`. Prints one line, "denied: ..." or "contained: ..." or
 * "ESCAPED: ..."; a death or a limit is seen from outside. Static, without libc's help where libc would refuse. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char **arguments;

static int say(const char *verdict, const char *what) {
	printf("%s: %s\n", verdict, what);
	return 0;
}

static int denied(void) { return say("denied", strerror(errno)); }
static int escaped(const char *what) { return say("ESCAPED", what); }

/* One of many ways that must all fail. */
#define MUST_FAIL(call) \
	do { \
		if ((long)(call) >= 0) \
			return escaped(#call); \
	} while (0)

static int can_read(const char *path) {
	char byte;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int got = fd >= 0 && read(fd, &byte, 1) == 1;
	if (fd >= 0)
		close(fd);
	return got;
}

static int can_write(const char *path) {
	int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* ARGUMENT: a file of the host that everybody there may read */
static int host_paths(void) {
	static const char *const prefixes[] = {
		"", "/proc/1/root", "/proc/1/cwd", "/proc/self/root/../../..", "/../../../..", "/proc/self/cwd/../../..",
		"/proc/self/task/1/root", "/proc/2/root", "/dev/fd/../../../root",
	};
	char path[4096];
	for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
		snprintf(path, sizeof path, "%s%s", prefixes[i], arguments[0]);
		if (can_read(path))
			return escaped(path);
	}
	return denied();
}

static int private_files(void) {
	static const char *const paths[] = {
		"/etc/shadow", "/root/.ssh", "/root/.bashrc", "/var/lib", "/run/docker.sock", "/home",
		"/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda",
		"/dev/kvm", "/dev/fuse", "/dev/net/tun", "/sys/firmware/acpi", "/sys/kernel/debug",
	};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (can_read(paths[i]))
			return escaped(paths[i]);
	return denied();
}

static int kernel_settings(void) {
	static const char *const paths[] = {
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname",
		"/proc/sys/vm/overcommit_memory", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/randomize_va_space",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/user/max_user_namespaces", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/proc/1/oom_score_adj",
	};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (can_write(paths[i]))
			return escaped(paths[i]);
	return denied();
}

static int core_pattern(void) {
	MUST_FAIL(open("/proc/sys/kernel/core_pattern", O_WRONLY));
	return denied();
}

static int sys_files(void) {
	static const char *const paths[] = {
		"/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state",
		"/sys/module/kernel/parameters/panic", "/sys/block", "/sys/fs/cgroup/cgroup.procs",
	};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (can_write(paths[i]))
			return escaped(paths[i]);
	return denied();
}

static int mounts(void) {
	MUST_FAIL(mount("none", "/tmp", "tmpfs", 0, ""));
	MUST_FAIL(mount("/", "/tmp", NULL, MS_BIND, NULL));
	MUST_FAIL(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
	MUST_FAIL(mount("proc", "/tmp", "proc", 0, ""));
	MUST_FAIL(umount2("/proc", MNT_DETACH));
	MUST_FAIL(syscall(SYS_pivot_root, "/tmp", "/tmp"));
	MUST_FAIL(chroot("/tmp"));
	MUST_FAIL(syscall(430 /* fsopen */, "tmpfs", 0));
	MUST_FAIL(syscall(428 /* open_tree */, AT_FDCWD, "/", 1));
	MUST_FAIL(syscall(442 /* mount_setattr */, AT_FDCWD, "/", 0, NULL, 0));
	return denied();
}

static int release_agent(void) {
	MUST_FAIL(mount("cgroup", "/tmp", "cgroup", 0, "memory"));
	MUST_FAIL(mount("cgroup2", "/tmp", "cgroup2", 0, NULL));
	MUST_FAIL(open("/sys/fs/cgroup/release_agent", O_WRONLY));
	MUST_FAIL(open("/sys/fs/cgroup/memory/release_agent", O_WRONLY));
	MUST_FAIL(mkdir("/sys/fs/cgroup/memory/mine", 0700));
	return denied();
}

/* ARGUMENT: the name of a listening abstract socket of the host */
static int abstract_sockets(void) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(arguments[0]);
	memcpy(address.sun_path + 1, arguments[0], length);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	MUST_FAIL(connect(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)));
	return denied();
}

/* ARGUMENT: a port on which the host listens on every address */
static int host_network(void) {
	static const uint32_t hosts[] = {0x7f000001, 0x00000000, 0x7f000002, 0x0a000001, 0xac110001, 0xa9fea9fe, 0x08080808};
	for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
		struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(hosts[i])}};
		address.sin_port = htons((uint16_t)atoi(arguments[0]));
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0)
			continue;
		int error = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
		if (error == EINPROGRESS) { /* a refusal is there within a moment; silence is a packet that went out */
			socklen_t size = sizeof error;
			poll(&(struct pollfd){fd, POLLOUT, 0}, 1, 1000);
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
		}
		if (error == 0)
			return escaped("a connection to the host");
		close(fd);
		errno = error;
	}
	return denied();
}

static int odd_sockets(void) {
	static const int families[][2] = {{17, 3}, {38, 5}, {40, 1}, {31, 3}, {44, 3}, {21, 5}, {30, 5}, {15, 3}};
	for (size_t i = 0; i < sizeof families / sizeof *families; i++)
		MUST_FAIL(socket(families[i][0], families[i][1], 0));
	MUST_FAIL(socket(AF_INET, SOCK_RAW, 1));
	return denied();
}

static int ptrace_init(void) {
	char byte;
	struct iovec mine = {&byte, 1}, theirs = {(void *)0x400000, 1};
	MUST_FAIL(ptrace(PTRACE_ATTACH, 1, 0, 0));
	MUST_FAIL(ptrace(PTRACE_SEIZE, 1, 0, 0));
	MUST_FAIL(syscall(SYS_process_vm_readv, 1, &mine, 1, &theirs, 1, 0));
	MUST_FAIL(syscall(SYS_kcmp, getpid(), 1, 0, 0, 0));
	MUST_FAIL(open("/proc/1/mem", O_RDWR));
	return denied();
}

static int agent_files(void) {
	char path[64], what[512] = "";
	static const char *const files[] = {"mem", "maps", "environ", "auxv"};
	for (int fd = 0; fd < 16; fd++) {
		snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
		int opened = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		struct stat status;
		if (opened < 0)
			continue;
		/* the pipes of execs are the sandbox's own; the stream to the host must not open */
		if (fstat(opened, &status) == 0 && !S_ISFIFO(status.st_mode) && !S_ISCHR(status.st_mode))
			return escaped(path);
		snprintf(what + strlen(what), sizeof what - strlen(what), "%s ", path);
		close(opened);
	}
	if (can_write("/proc/1/mem"))
		return escaped("/proc/1/mem");
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "/proc/1/%s", files[i]);
		if (can_read(path))
			snprintf(what + strlen(what), sizeof what - strlen(what), "%s ", path);
	}
	return what[0] ? say("contained", what) : denied();
}

static int kill_init(void) {
	if (kill(1, SIGKILL) < 0)
		return denied();
	sleep(1);
	return say("contained", "process 1 of the sandbox ignores it");
}

static int keyrings(void) {
	MUST_FAIL(syscall(SYS_add_key, "user", "corral", "x", 1, -5));
	MUST_FAIL(syscall(SYS_keyctl, 0, -3, 1));
	MUST_FAIL(syscall(SYS_request_key, "user", "corral", NULL, -5));
	return denied();
}

static int io_uring(void) {
	char parameters[256] = {0};
	MUST_FAIL(syscall(425, 8, parameters));
	return denied();
}

static int userfaultfd(void) {
	MUST_FAIL(syscall(SYS_userfaultfd, 1));
	return denied();
}

static int bpf_and_perf(void) {
	char attributes[128] = {0};
	MUST_FAIL(syscall(SYS_bpf, 0, attributes, sizeof attributes));
	MUST_FAIL(syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0));
	return denied();
}

static int tiocsti(void) {
	int number, unlock = 0;
	char name[32];
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	if (master < 0)
		return denied();
	setsid();
	ioctl(master, TIOCSPTLCK, &unlock);
	ioctl(master, TIOCGPTN, &number);
	snprintf(name, sizeof name, "/dev/pts/%d", number);
	int terminal = open(name, O_RDWR);
	ioctl(terminal, TIOCSCTTY, 0);
	MUST_FAIL(ioctl(terminal, TIOCSTI, "x"));
	MUST_FAIL(syscall(SYS_ioctl, terminal, 0x100000000UL | TIOCSTI, "x")); /* the kernel looks at the low half only */
	return denied();
}

static int x32_calls(void) {
	errno = 0;
	long pid = syscall(0x40000000 | SYS_getpid);
	return pid >= 0 ? escaped("an x32 call was served") : denied();
}

static int i386_calls(void) {
#ifdef __x86_64__
	long pid;
	__asm__ volatile("int $0x80" : "=a"(pid) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
	return pid > 0 ? escaped("an i386 call was served") : say("denied", "no i386 calls");
#else
	return say("denied", "no such processor");
#endif
}

static int clone3_around(void) {
	uint64_t wanted[11] = {CLONE_NEWUSER | CLONE_NEWNS};
	wanted[4] = SIGCHLD;
	long pid = syscall(435, wanted, sizeof wanted);
	if (pid == 0)
		_exit(0);
	return pid > 0 ? escaped("clone3 made namespaces") : denied();
}

static int child_nothing(void *nothing) { return nothing != NULL; }

static int user_namespaces(void) {
	static char stack[65536];
	MUST_FAIL(unshare(CLONE_NEWUSER));
	MUST_FAIL(unshare(CLONE_NEWNS));
	MUST_FAIL(unshare(CLONE_NEWNET));
	MUST_FAIL(clone(child_nothing, stack + sizeof stack, CLONE_NEWUSER | SIGCHLD, NULL));
	int fd = open("/proc/1/ns/mnt", O_RDONLY);
	MUST_FAIL(setns(fd, 0));
	return denied();
}

static int device_nodes(void) {
	static const struct {
		const char *path;
		mode_t kind;
		unsigned major, minor;
	} nodes[] = {
		{"/work/mem", S_IFCHR, 1, 1}, {"/work/kmsg", S_IFCHR, 1, 11}, {"/tmp/disk", S_IFBLK, 8, 0},
		{"/tmp/vda", S_IFBLK, 254, 0}, {"/tmp/kvm", S_IFCHR, 10, 232}, {"/tmp/tty", S_IFCHR, 4, 1},
	};
	int made = 0;
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		if (mknod(nodes[i].path, nodes[i].kind | 0666, makedev(nodes[i].major, nodes[i].minor)) < 0)
			continue;
		made++;
		if (open(nodes[i].path, O_RDONLY | O_NONBLOCK) >= 0)
			return escaped(nodes[i].path);
	}
	return made ? say("contained", "nodes can be made and not opened") : denied();
}

static int become_root(void) {
	uint32_t head[2] = {0x20080522, 0}, all[6] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
	MUST_FAIL(setresuid(0, 0, 0));
	MUST_FAIL(setresgid(0, 0, 0));
	MUST_FAIL(syscall(SYS_capset, head, all));
	MUST_FAIL(setuid(65534));
	MUST_FAIL(chown("/work", 0, 0));
	return denied();
}

/* A program with the setuid bit of somebody else would help: none may be effective. */
static int setuid_programs(void) {
	static const char *const programs[] = {"/usr/bin/su", "/usr/bin/passwd", "/bin/mount", "/usr/bin/newgrp"};
	char self[4096] = {0};
	uid_t before = geteuid();
	if (arguments[0] && strcmp(arguments[0], "inside") == 0)
		return geteuid() != (uid_t)atoi(arguments[1]) ? escaped("another user's rights") : say("denied", "still oneself");
	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
		struct stat status;
		if (stat(programs[i], &status) == 0 && access(programs[i], W_OK) == 0)
			return escaped(programs[i]);
	}
	if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
		return denied();
	chmod(self, 06755);
	char number[16];
	snprintf(number, sizeof number, "%u", before);
	execl(self, self, "setuid-programs", "inside", number, NULL);
	return denied();
}

static int descriptors(void) {
	DIR *list = opendir("/proc/self/fd");
	if (list == NULL)
		return denied();
	for (struct dirent *entry; (entry = readdir(list)) != NULL;)
		if (entry->d_name[0] != '.' && atoi(entry->d_name) > 2 && atoi(entry->d_name) != dirfd(list))
			return escaped("a descriptor that nobody gave us");
	MUST_FAIL(openat(0, "../../../etc/shadow", O_RDONLY));
	return denied();
}

static int file_handles(void) {
	struct {
		struct file_handle head;
		char room[128];
	} handle = {.head = {.handle_bytes = 128}};
	int mount_id;
	MUST_FAIL(name_to_handle_at(AT_FDCWD, "/", &handle.head, &mount_id, 0));
	handle.head.handle_bytes = 8;
	handle.head.handle_type = 1;
	handle.head.f_handle[0] = 2; /* the root of most file systems */
	MUST_FAIL(open_by_handle_at(AT_FDCWD, &handle.head, O_RDONLY));
	return denied();
}

static int machine(void) {
	long now[2] = {0, 0};
	MUST_FAIL(syscall(SYS_reboot, 0xfee1dead, 672274793, 0xcdef0123, NULL)); /* a restart by key, allowed or not */
	MUST_FAIL(syscall(SYS_init_module, "", 0, ""));
	MUST_FAIL(syscall(SYS_finit_module, 0, "", 0));
	MUST_FAIL(syscall(SYS_delete_module, "none", 0));
	MUST_FAIL(syscall(SYS_kexec_load, 0, 0, NULL, 0));
	MUST_FAIL(syscall(SYS_settimeofday, now, NULL));
	MUST_FAIL(syscall(SYS_sethostname, "mine", 4));
	MUST_FAIL(syscall(SYS_swapon, "/work", 0));
	MUST_FAIL(syscall(SYS_acct, NULL));
	MUST_FAIL(syscall(SYS_syslog, 3, now, sizeof now));
	return denied();
}

static int priority(void) {
	return setpriority(PRIO_PROCESS, 0, -20) < 0 ? denied() : say("contained", "a number that the host does not see");
}

static int kernel_addresses(void) {
	char line[256];
	FILE *symbols = fopen("/proc/kallsyms", "r");
	if (symbols == NULL)
		return denied();
	while (fgets(line, sizeof line, symbols))
		if (strtoull(line, NULL, 16) != 0)
			return escaped("an address of the kernel");
	return say("denied", "every address is told as zero");
}

static int symlink_mounts(void) {
	int fd = open("/work/made-inside", O_CREAT | O_WRONLY, 0600);
	if (fd < 0)
		return denied();
	return say("contained", "what is mounted is not where the image's links lead");
}

/* ---- bombs: they end by a limit, or they tell how far they came ---- */

static int fork_bomb(void) {
	for (int started = 0; started < 4000; started++) {
		pid_t pid = fork();
		if (pid < 0)
			return 1;
		if (pid == 0) {
			pause();
			_exit(0);
		}
	}
	return escaped("4000 processes");
}

static int memory_bomb(void) {
	for (size_t total = 0; total < (size_t)1 << 30; total += 1 << 20) {
		char *piece = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (piece == MAP_FAILED)
			return 1;
		memset(piece, 1, 1 << 20);
	}
	return escaped("1 GiB of memory");
}

static int disk_bomb(void) {
	static char piece[1 << 20];
	int fd = open("/work/big", O_CREAT | O_WRONLY, 0600);
	for (int written = 0; written < 512; written++)
		if (write(fd, piece, sizeof piece) != sizeof piece)
			return 1;
	return escaped("512 MiB of disk");
}

static int file_bomb(void) {
	char name[64];
	for (int made = 0; made < 5000; made++) {
		snprintf(name, sizeof name, "/work/f%d", made);
		int fd = open(name, O_CREAT | O_WRONLY, 0600);
		if (fd < 0)
			return 1;
		close(fd);
	}
	return say("contained", "5000 files; they are the sandbox's own memory");
}

static int terminal_bomb(void) {
	int opened = 0;
	while (opened < 5000 && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0)
		opened++;
	return opened < 5000 ? say("contained", "the process may have no more open files") : escaped("5000 terminals");
}

static const struct {
	const char *name;
	int (*run)(void);
} attacks[] = {
	{"host-paths", host_paths}, {"private-files", private_files}, {"kernel-settings", kernel_settings},
	{"core-pattern", core_pattern}, {"sys-files", sys_files}, {"mounts", mounts}, {"release-agent", release_agent},
	{"abstract-sockets", abstract_sockets}, {"host-network", host_network}, {"odd-sockets", odd_sockets},
	{"ptrace", ptrace_init}, {"kill-init", kill_init}, {"agent-files", agent_files}, {"keyrings", keyrings}, {"io-uring", io_uring},
	{"userfaultfd", userfaultfd}, {"bpf-and-perf", bpf_and_perf}, {"tiocsti", tiocsti}, {"x32-calls", x32_calls},
	{"i386-calls", i386_calls}, {"clone3", clone3_around}, {"user-namespaces", user_namespaces},
	{"device-nodes", device_nodes}, {"become-root", become_root}, {"setuid-programs", setuid_programs},
	{"descriptors", descriptors}, {"file-handles", file_handles}, {"priority", priority}, {"machine", machine},
	{"kernel-addresses", kernel_addresses}, {"symlink-mounts", symlink_mounts}, {"fork-bomb", fork_bomb},
	{"memory-bomb", memory_bomb}, {"disk-bomb", disk_bomb}, {"file-bomb", file_bomb}, {"terminal-bomb", terminal_bomb},
};

int main(int argc, char **argv) {
	arguments = argv + 2;
	for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
		if (strcmp(argv[1], attacks[i].name) == 0) {
			int status = attacks[i].run();
			fflush(stdout);
			return status;
		}
	fprintf(stderr, "no such attack\n");
	return 2;
}
