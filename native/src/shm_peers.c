/* Who the other ranks are, whether they live, and whether each can have a core. */
#define _GNU_SOURCE
#include "shm.h"

#ifdef __linux__
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* When a process began, in clock ticks after boot; 0 if it is gone, `unknown` where nobody says. */
static uint64_t start_of(int64_t process, uint64_t unknown) {
    char path[40], text[512];
    (void)snprintf(path, sizeof path, "/proc/%lld/stat", (long long)process);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return errno == ENOENT && access("/proc/self/stat", R_OK) == 0 ? 0 : unknown;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) return 0;
    text[size] = 0;
    const char *at = strrchr(text, ')'); /* names may hold anything; state and numbers follow */
    if (!at || at[1] != ' ') return unknown;
    if (at[2] == 'Z' || at[2] == 'X') return 0;
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : unknown;
}

void shm_describe(shm_rank *mine) {
    struct stat space;
    cpu_set_t cpus;
    mine->process = (int64_t)getpid();
    mine->started = start_of(mine->process, 0);
    mine->id_space = stat("/proc/self/ns/pid", &space) == 0 ? (uint64_t)space.st_ino : 0;
    CPU_ZERO(&cpus);
    if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return;
    for (int i = 0; i < SHM_CPUS; i++)
        if (CPU_ISSET(i, &cpus)) mine->cpus[i / 64] |= 1ull << i % 64;
}

int shm_cores(const dither_shm *shm) {
    int cores = 0;
    for (int i = 0; i < SHM_CPUS / 64; i++) {
        uint64_t any = 0;
        for (unsigned q = 0; q < shm->ranks; q++) any |= shm->rank_of[q].cpus[i];
        cores += __builtin_popcountll(any);
    }
    return cores;
}

/* Whether its number means to us what it means to it, and it is not ourselves. */
static int visible(const dither_shm *shm, unsigned q) {
    const shm_rank *mine = &shm->rank_of[shm->rank], *peer = &shm->rank_of[q];
    return mine->id_space != 0 && peer->id_space == mine->id_space && peer->process != mine->process;
}

static int is_process(const shm_rank *peer) {
    return peer->started == 0 || start_of(peer->process, peer->started) == peer->started;
}

dither_status shm_watch_peers(dither_shm *shm) {
    for (unsigned q = 0; q < shm->ranks; q++) {
        const shm_rank *peer = &shm->rank_of[q];
        if (!visible(shm, q)) continue;
#ifdef SYS_pidfd_open
        shm->lives[q] = (int)syscall(SYS_pidfd_open, (pid_t)peer->process, 0); /* closed by exec */
#endif
        /* Looked at after the descriptor was opened: so the descriptor is of this very process. */
        if (!is_process(peer) && !atomic_load(&peer->left.count)) {
            shm->culprit = (int)q;
            return DITHER_PEER_DEAD;
        }
    }
    return DITHER_OK;
}

int shm_first_dead(dither_shm *shm) {
    for (unsigned q = 0; q < shm->ranks; q++) {
        if (!visible(shm, q)) continue;
        struct pollfd life = {shm->lives[q], POLLIN, 0};
        const int gone = shm->lives[q] >= 0 ? poll(&life, 1, 0) == 1 && (life.revents & POLLIN)
                                            : !is_process(&shm->rank_of[q]);
        /* One that ended after it had left is not missed. */
        if (gone && !atomic_load(&shm->rank_of[q].left.count)) return (int)q;
    }
    return -1;
}
#else
typedef int dither_shm_needs_linux;
#endif
