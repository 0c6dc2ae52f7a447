/* Memory that all ranks of a communicator share, where all are on one host.
 *
 * Rank 0 makes it; the others open it through /proc, which the system allows to the same user alone, and
 * check that it is the very same file. Whatever fails, on any rank, all go over MPI instead. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mpi_core.h"

enum { CPUS = 1024, FILES = 2 }; /* the segment; where ranks say that they came */

/* What rank 0 tells. */
typedef struct {
    int64_t good, process, file[FILES], device[FILES], node[FILES];
} offer;

static size_t arrivals_size(const dm_group *group) {
    return (size_t)group->ranks * sizeof(dm_arrival);
}

static int all_good(const dm_group *group, int good) {
    PMPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, group->own);
    return good;
}

void dm_host_look(dm_group *group) {
    MPI_Comm host = MPI_COMM_NULL;
    cpu_set_t mine;
    uint64_t all[CPUS / 64] = {0};
    int cores = 0;
    CPU_ZERO(&mine);
    (void)sched_getaffinity(0, sizeof mine, &mine);
    for (int c = 0; c < CPUS && c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &mine)) all[c / 64] |= (uint64_t)1 << c % 64;
    group->host_ranks = 1;
    PMPI_Comm_split_type(group->own, MPI_COMM_TYPE_SHARED, group->rank, MPI_INFO_NULL, &host);
    if (host == MPI_COMM_NULL) return;
    PMPI_Comm_size(host, &group->host_ranks);
    PMPI_Allreduce(MPI_IN_PLACE, all, CPUS / 64, MPI_UINT64_T, MPI_BOR, host);
    PMPI_Comm_free(&host);
    for (int i = 0; i < CPUS / 64; i++) cores += __builtin_popcountll(all[i]);
    group->spins = cores >= group->host_ranks;
    if (group->comm == MPI_COMM_WORLD) dm.crowded = cores < 2 * group->host_ranks;
}

static int identify(int file, int64_t *device, int64_t *node) {
    struct stat state;
    if (fstat(file, &state) != 0) return 0;
    *device = (int64_t)state.st_dev;
    *node = (int64_t)state.st_ino;
    return 1;
}

static void make(const dm_group *group, offer *told, int files[FILES]) {
    told->process = getpid();
    if (dither_shm_create((unsigned)group->ranks, &files[0]) != DITHER_OK) return;
    files[1] = memfd_create("dither-calls", MFD_CLOEXEC);
    if (files[1] < 0 || ftruncate(files[1], (off_t)arrivals_size(group)) != 0) return;
    told->good = 1;
    for (int f = 0; f < FILES; f++) {
        told->file[f] = files[f];
        told->good &= identify(files[f], &told->device[f], &told->node[f]);
    }
}

static int find(const offer *told, int files[FILES]) {
    for (int f = 0; f < FILES && told->good; f++) {
        char path[64];
        int64_t device = 0, node = 0;
        snprintf(path, sizeof path, "/proc/%ld/fd/%ld", (long)told->process, (long)told->file[f]);
        files[f] = open(path, O_RDWR | O_CLOEXEC);
        /* In another space of process numbers it could be any file. */
        if (files[f] < 0 || !identify(files[f], &device, &node) || device != told->device[f] ||
            node != told->node[f])
            return 0;
    }
    return (int)told->good;
}

static int join(dm_group *group, const int files[FILES]) {
    void *memory = mmap(NULL, arrivals_size(group), PROT_READ | PROT_WRITE, MAP_SHARED, files[1], 0);
    if (memory != MAP_FAILED) group->arrivals = memory;
    if (!all_good(group, group->arrivals != NULL)) return 0;
    return all_good(group, dither_shm_attach(files[0], (unsigned)group->rank, dm.plan.timeout,
                                             dm_is_broken, group, &group->shm) == DITHER_OK);
}

void dm_segment_open(dm_group *group) {
    offer told = {0};
    int files[FILES] = {-1, -1};
    if (dm.plan.path == DM_MPI || group->ranks > DITHER_SHM_RANKS ||
        !all_good(group, group->host_ranks == group->ranks))
        return;
    if (group->rank == 0) make(group, &told, files);
    PMPI_Bcast(&told, (int)sizeof told, MPI_BYTE, 0, group->own);
    const int mine = group->rank == 0 ? (int)told.good : find(&told, files);
    if (!all_good(group, mine) || !join(group, files)) dm_segment_close(group);
    for (int f = 0; f < FILES; f++)
        if (files[f] >= 0) close(files[f]);
    if (!group->shm && dm.plan.path == DM_SHM)
        dm_die("no memory can be shared by the ranks of this host; run with --path auto");
}

void dm_segment_close(dm_group *group) {
    dither_shm_free(group->shm);
    group->shm = NULL;
    if (group->arrivals) dm_depart(group);
    if (group->arrivals) munmap(group->arrivals, arrivals_size(group));
    group->arrivals = NULL;
}
