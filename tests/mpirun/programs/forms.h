/* Every form in which a program asks for a sum, as one function each. */
#ifndef FORMS_H
#define FORMS_H

#include <mpi.h>
#include <stddef.h>

typedef struct {
    const void *send;
    void *receive; /* read at the root only, by forms that have one */
    int count;
    MPI_Datatype type;
    MPI_Op op;
    int root;
    MPI_Comm comm;
} job;

typedef struct {
    const char *name;
    int (*run)(const job *job);
    int rooted;
} form;

static int wait_for(int code, MPI_Request *request) {
    return code == MPI_SUCCESS ? MPI_Wait(request, MPI_STATUS_IGNORE) : code;
}

/* Starts twice: what counts is the second result. */
static int start_twice(int code, MPI_Request *request) {
    for (int turn = 0; turn < 2 && code == MPI_SUCCESS; turn++)
        code = wait_for(MPI_Start(request), request);
    if (*request != MPI_REQUEST_NULL) MPI_Request_free(request);
    return code;
}

#define PLAIN(name, call)                                                              \
    static int name##_(const job *j) {                                                 \
        return call(j->send, j->receive, j->count, j->type, j->op, j->comm);           \
    }
#define ROOTED(name, call)                                                             \
    static int name##_(const job *j) {                                                 \
        return call(j->send, j->receive, j->count, j->type, j->op, j->root, j->comm);  \
    }
#define WAITED(name, call)                                                             \
    static int name##_(const job *j) {                                                 \
        MPI_Request r = MPI_REQUEST_NULL;                                              \
        return wait_for(                                                               \
            call(j->send, j->receive, j->count, j->type, j->op, j->comm, &r), &r);     \
    }
#define WAITED_ROOTED(name, call)                                                      \
    static int name##_(const job *j) {                                                 \
        MPI_Request r = MPI_REQUEST_NULL;                                              \
        return wait_for(call(j->send, j->receive, j->count, j->type, j->op, j->root,   \
                             j->comm, &r),                                             \
                        &r);                                                           \
    }
#define KEPT(name, call)                                                               \
    static int name##_(const job *j) {                                                 \
        MPI_Request r = MPI_REQUEST_NULL;                                              \
        return start_twice(call(j->send, j->receive, j->count, j->type, j->op,         \
                                j->comm, MPI_INFO_NULL, &r),                           \
                           &r);                                                        \
    }
#define KEPT_ROOTED(name, call)                                                        \
    static int name##_(const job *j) {                                                 \
        MPI_Request r = MPI_REQUEST_NULL;                                              \
        return start_twice(call(j->send, j->receive, j->count, j->type, j->op,         \
                                j->root, j->comm, MPI_INFO_NULL, &r),                  \
                           &r);                                                        \
    }

PLAIN(allreduce, MPI_Allreduce)
ROOTED(reduce, MPI_Reduce)
WAITED(iallreduce, MPI_Iallreduce)
WAITED_ROOTED(ireduce, MPI_Ireduce)
KEPT(allreduce_init, MPI_Allreduce_init)
KEPT_ROOTED(reduce_init, MPI_Reduce_init)
#if MPI_VERSION >= 4
PLAIN(allreduce_c, MPI_Allreduce_c)
ROOTED(reduce_c, MPI_Reduce_c)
WAITED(iallreduce_c, MPI_Iallreduce_c)
WAITED_ROOTED(ireduce_c, MPI_Ireduce_c)
KEPT(allreduce_init_c, MPI_Allreduce_init_c)
KEPT_ROOTED(reduce_init_c, MPI_Reduce_init_c)
#endif

static const form forms[] = {
    {"Allreduce", allreduce_, 0},
    {"Reduce", reduce_, 1},
    {"Iallreduce", iallreduce_, 0},
    {"Ireduce", ireduce_, 1},
    {"Allreduce_init", allreduce_init_, 0},
    {"Reduce_init", reduce_init_, 1},
#if MPI_VERSION >= 4
    {"Allreduce_c", allreduce_c_, 0},
    {"Reduce_c", reduce_c_, 1},
    {"Iallreduce_c", iallreduce_c_, 0},
    {"Ireduce_c", ireduce_c_, 1},
    {"Allreduce_init_c", allreduce_init_c_, 0},
    {"Reduce_init_c", reduce_init_c_, 1},
#endif
};
enum { FORMS = (int)(sizeof forms / sizeof forms[0]) };

#endif
