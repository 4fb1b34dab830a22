/* What this process may ask of the kernel once it runs other people's code: what it needs, and nothing that reaches
 * out of it: no new sockets, no programs, no other processes, no paths but those below descriptors it was given. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host.h"

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

static const int allowed[] = {
    SYS_read, SYS_write, SYS_pread64, SYS_pwrite64, SYS_readv, SYS_writev, SYS_lseek, SYS_close, SYS_fstat,
    SYS_ftruncate, SYS_getdents64, SYS_fcntl, SYS_dup, SYS_dup3,
    SYS_recvmsg, SYS_sendmsg, SYS_recvfrom, SYS_sendto, SYS_shutdown, SYS_accept4, SYS_setsockopt, SYS_getsockopt,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_ppoll, SYS_eventfd2,
    SYS_openat2, SYS_newfstatat, SYS_readlinkat, SYS_mkdirat, SYS_unlinkat, SYS_renameat2, SYS_statx,
    SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk, SYS_memfd_create, SYS_mincore, SYS_membarrier,
    SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_clone3, SYS_clone, SYS_set_tid_address, SYS_gettid, SYS_getpid,
    SYS_sched_yield, SYS_sched_getaffinity, SYS_setpriority, SYS_sched_setattr, SYS_sched_setaffinity, SYS_getpriority, SYS_prctl,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_tgkill, SYS_restart_syscall,
    SYS_clock_gettime, SYS_clock_nanosleep, SYS_clock_getres, SYS_nanosleep, SYS_getrandom, SYS_exit, SYS_exit_group,
    SYS_getuid, SYS_uname, SYS_sysinfo, SYS_prlimit64, SYS_getrusage,
#ifdef __x86_64__
    SYS_epoll_wait, SYS_poll, SYS_renameat, SYS_arch_prctl,
#endif
#ifdef SYS_renameat
    SYS_renameat,
#endif
};
enum { ALLOWED = sizeof allowed / sizeof *allowed };

static const int denied[] = {
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_mount, SYS_umount2, SYS_unshare,
    SYS_setns, SYS_bpf, SYS_perf_event_open, SYS_kexec_load, SYS_init_module, SYS_finit_module, SYS_add_key,
    SYS_keyctl, SYS_request_key, SYS_pivot_root, SYS_chroot, SYS_userfaultfd, SYS_io_uring_setup, SYS_kill,
    SYS_sendmmsg, SYS_pidfd_getfd, SYS_pidfd_send_signal, SYS_setsid, SYS_memfd_secret,
};
enum { DENIED = sizeof denied / sizeof *denied };

static void install(const int *numbers, int count, unsigned listed, unsigned other, unsigned flags, bool only_ip) {
  struct sock_filter code[ALLOWED * 2 + 24];
  unsigned short n = 0;
  code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
  code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
  code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1); /* x32 */
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
#endif
  if (only_ip) { /* of sockets: no netlink, nothing that is found by a path */
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 5);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 2, 0);
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  }
  for (int each = 0; each < count; each++) {
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)numbers[each], 0, 1);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, listed);
  }
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, other);
  struct sock_fprog program = {.len = n, .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) != 0) {
    perror("corral-wasm-host: seccomp");
    exit(71);
  }
}

_Static_assert((int)DENIED < (int)ALLOWED, "install() has room for the longer list");

void confine(void) {
  install(allowed, ALLOWED, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM, SECCOMP_FILTER_FLAG_TSYNC, false);
}

void confine_program(bool network) {
  static const int reaching[] = {SYS_socket, SYS_connect};
  if (!network) install(reaching, 2, SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW, 0, false);
  install(denied, DENIED, SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW, 0, network);
}
