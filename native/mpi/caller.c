/* Who calls: the program, or MPI itself? Counts alone depend on it: MPI-IO for one is built on MPI's
 * own functions, and its calls to those are not the program's. The caller's address tells. MPI's Fortran layer
 * counts as the program: it hands on what the program asked for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "mpi_core.h"

enum { OBJECTS_MOST = 64 };

typedef struct {
    uintptr_t first, end;
    int mpi;
} object;

static object objects[OBJECTS_MOST];
static _Atomic int object_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    uintptr_t address;
    object found;
} search;

/* Not &PMPI_Allreduce: where a program takes that address too it may be one of the program's own. */
static uintptr_t in_mpi(void) {
    static _Atomic uintptr_t known;
    if (!known) known = (uintptr_t)dlsym(RTLD_NEXT, "PMPI_Allreduce");
    return known;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int contains(struct dl_phdr_info *info, uintptr_t address, object *found) {
    int inside = 0;
    found->first = UINTPTR_MAX;
    found->end = 0;
    for (int p = 0; p < info->dlpi_phnum; p++) {
        if (info->dlpi_phdr[p].p_type != PT_LOAD) continue;
        const uintptr_t at = info->dlpi_addr + info->dlpi_phdr[p].p_vaddr,
                        end = at + info->dlpi_phdr[p].p_memsz;
        inside |= address >= at && address < end;
        if (at < found->first) found->first = at;
        if (end > found->end) found->end = end;
    }
    return inside;
}

static int look(struct dl_phdr_info *info, size_t size, void *context) {
    search *s = context;
    object library;
    (void)size;
    if (!contains(info, s->address, &s->found)) return 0;
    s->found.mpi = info->dlpi_name && *info->dlpi_name && contains(info, in_mpi(), &library);
    return 1;
}

static int learn(uintptr_t address) {
    search s = {.address = address};
    if (!dl_iterate_phdr(look, &s)) return 0; /* made at run time: the program's */
    pthread_mutex_lock(&lock);
    const int count = object_count;
    if (count < OBJECTS_MOST) {
        objects[count] = s.found;
        atomic_store(&object_count, count + 1);
    }
    pthread_mutex_unlock(&lock);
    return s.found.mpi;
}

int dither_is_mpi(const void *caller) {
    const uintptr_t address = (uintptr_t)caller;
    const int count = atomic_load_explicit(&object_count, memory_order_acquire);
    for (int i = 0; i < count; i++)
        if (address >= objects[i].first && address < objects[i].end) return objects[i].mpi;
    return learn(address);
}

/* Two MPI libraries in one process: handles of one mean nothing to the other. */
static int second(struct dl_phdr_info *info, size_t size, void *context) {
    object library;
    (void)size;
    const char *name = base_name(info->dlpi_name ? info->dlpi_name : "");
    if (strncmp(name, "libmpi.so", 9) && strncmp(name, "libmpi_abi.so", 13) &&
        strncmp(name, "libmpich.so", 11))
        return 0;
    if (contains(info, in_mpi(), &library)) return 0;
    *(const char **)context = info->dlpi_name;
    return 1;
}

void dm_one_mpi(void) {
    const char *other = NULL;
    if (!dl_iterate_phdr(second, &other)) return;
    dm_die("this program is linked with another MPI, %s, than the mpiexec that dither was built "
           "for; put the program's own MPI first on PATH, or name its mpiexec with --mpiexec",
           other);
}

/* Whether a call of this name by the program comes to us: 1 also where nobody has it. An address in a program may
 * be no function of its own but its way to ours. */
static int is_ours(const char *name) {
    Dl_info found, here;
    const ElfW(Sym) *symbol = NULL;
    const void *address = dlsym(RTLD_DEFAULT, name);
    if (!address || !dladdr(&objects, &here)) return 1;
    if (!dladdr1(address, &found, (void **)&symbol, RTLD_DL_SYMENT)) return 1;
    return found.dli_fbase == here.dli_fbase || (symbol && symbol->st_shndx == SHN_UNDEF);
}

void dm_ours_first(void) {
    static const char *const forms[] = {"", "_c"};
    for (int call = 0; call < DM_CALLS; call++)
        for (int form = 0; form < 2; form++) {
            char name[64];
            snprintf(name, sizeof name, "%s%s", dm_call_names[call], forms[form]);
            if (!is_ours(name) && dlsym(RTLD_NEXT, name))
                dm_die("%s is defined by the program or by a tool loaded before dither, so its sums would "
                       "not be private; run without that",
                       name);
        }
}
