/* Calls MPI as compiled Fortran does: lower-case names, everything by reference, integer handles. Names
 * that neither the MPI nor anything preloaded has are told as absent. */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "tell.h"

typedef void allreduce_f(void *, void *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *);
typedef void iallreduce_f(void *, void *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *,
                          MPI_Fint *);
typedef void wait_f(MPI_Fint *, MPI_Fint *, MPI_Fint *);

static double send[4], receive[4];
static MPI_Fint count = 4, code;

static void *known(const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    if (found == NULL) tell("absent %s", name);
    return found;
}

static void told(const char *name) {
    tell("%s %d %.6g %.6g %.6g %.6g", name, (int)code, receive[0], receive[1], receive[2], receive[3]);
    for (int i = 0; i < 4; i++) receive[i] = -1.0;
    code = -1;
}

static void by_name(const char *name, MPI_Op how) {
    union {
        void *found;
        allreduce_f *call; /* ISO C has no cast between the two */
    } name_of = {known(name)};
    MPI_Fint type = MPI_Type_c2f(MPI_DOUBLE), op = MPI_Op_c2f(how);
    MPI_Fint comm = MPI_Comm_c2f(MPI_COMM_WORLD);
    if (name_of.found == NULL) return;
    name_of.call(send, receive, &count, &type, &op, &comm, &code);
    told(name);
}

static void waited(void) {
    union {
        void *found;
        iallreduce_f *call;
    } start = {known("mpi_iallreduce_")};
    union {
        void *found;
        wait_f *call;
    } wait = {known("mpi_wait_")};
    MPI_Fint type = MPI_Type_c2f(MPI_DOUBLE), op = MPI_Op_c2f(MPI_SUM), request;
    MPI_Fint comm = MPI_Comm_c2f(MPI_COMM_WORLD), status[64];
    if (start.found == NULL || wait.found == NULL) return;
    start.call(send, receive, &count, &type, &op, &comm, &request, &code);
    wait.call(&request, status, &code);
    told("mpi_iallreduce_");
    tell("request %d", MPI_Request_f2c(request) == MPI_REQUEST_NULL);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    for (int i = 0; i < 4; i++) send[i] = i + rank_in(MPI_COMM_WORLD);
    by_name("mpi_allreduce_", MPI_SUM);
    by_name("mpi_allreduce__", MPI_SUM);
    by_name("MPI_ALLREDUCE", MPI_SUM);
    by_name("mpi_allreduce_", MPI_MAX);
    waited();
    finish();
    return 0;
}
