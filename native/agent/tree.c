/* Processes by ancestry, from /proc. Whoever asks is a subreaper, so a descendant never leaves the tree: it can
 * daemonise, change its session and ignore signals, but its parents lead to the asker. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define STOP_ROUNDS 50

enum mark { UNKNOWN, STRANGER, MEMBER, SPARED };

struct process {
    pid_t pid, parent;
    char state;
    enum mark mark;
};

static struct process *process;
static size_t processes, capacity;

int open_process(pid_t pid) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static bool read_process(int stat, struct process *p) {
    char text[512];
    ssize_t n = pread(stat, text, sizeof text - 1, 0);
    if (n <= 0)
        return false;
    text[n] = 0;
    char *after = strrchr(text, ')'); /* a command's name may hold anything, also ')' */
    if (after == NULL || after[1] != ' ' || after[2] == 0)
        return false;
    p->pid = atoi(text);
    p->state = after[2];
    p->parent = atoi(after + 3);
    p->mark = UNKNOWN;
    return true;
}

char process_state(int stat) {
    struct process p;
    return read_process(stat, &p) ? p.state : 0;
}

static bool list_processes(void) {
    DIR *proc = opendir("/proc");
    if (proc == NULL)
        return false;
    processes = 0;
    for (struct dirent *entry; (entry = readdir(proc)) != NULL;) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        if (processes == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            void *grown = realloc(process, capacity * sizeof *process);
            if (grown == NULL)
                break;
            process = grown;
        }
        int stat = open_process(atoi(entry->d_name));
        if (stat < 0)
            continue; /* it has ended meanwhile */
        processes += read_process(stat, &process[processes]);
        close(stat);
    }
    closedir(proc);
    return true;
}

static enum mark mark_of(pid_t pid, pid_t root) {
    if (pid == root)
        return MEMBER;
    for (size_t i = 0; i < processes; i++)
        if (process[i].pid == pid)
            return process[i].mark;
    return STRANGER;
}

static void mark_tree(pid_t root, bool (*spared)(pid_t)) {
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < processes; i++) {
            struct process *p = &process[i];
            if (p->mark != UNKNOWN || p->pid == root)
                continue;
            enum mark parent = p->parent <= 0 ? STRANGER : mark_of(p->parent, root);
            if (parent == UNKNOWN)
                continue;
            p->mark = parent == MEMBER && spared && p->parent == root && spared(p->pid) ? SPARED : parent;
            changed = true;
        }
    }
}

static bool is_live(const struct process *p) { return p->mark == MEMBER && p->state != 'Z' && p->state != 'X'; }

int signal_tree(pid_t root, int signal, bool (*spared)(pid_t)) {
    int live = 0;
    if (!list_processes())
        return -1;
    mark_tree(root, spared);
    for (size_t i = 0; i < processes; i++)
        if (process[i].pid != root && is_live(&process[i])) {
            live++;
            kill(process[i].pid, signal);
        }
    return live;
}

/* Freeze until nobody is left who could fork, so that a fork bomb cannot outrun the killing. */
static void freeze_tree(pid_t root, bool (*spared)(pid_t)) {
    for (int round = 0; round < STOP_ROUNDS; round++) {
        bool running = false;
        if (!list_processes())
            return;
        mark_tree(root, spared);
        for (size_t i = 0; i < processes; i++)
            if (process[i].pid != root && is_live(&process[i]) && process[i].state != 'T') {
                kill(process[i].pid, SIGSTOP);
                running = true;
            }
        if (!running)
            return;
    }
}

int kill_tree_round(pid_t root, unsigned round, bool (*spared)(pid_t)) {
    if (round >= 3)
        freeze_tree(root, spared);
    return signal_tree(root, SIGKILL, spared);
}
