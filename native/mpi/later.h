/* One operation under way, or prepared. */
#ifndef DITHER_MPI_LATER_H
#define DITHER_MPI_LATER_H

#include "mpi_core.h"

enum { DM_PARTS = 64 };

typedef struct dm_operation {
    struct dm_operation *next;   /* in the list of those under way, or of those that are free */
    struct dm_operation *queued; /* in the worker's queue */
    struct dm_operation *sibling; /* in the list of prepared ones */
    dm_arguments arguments;
    dm_group *group;
    dm_sum sum;
    MPI_Request request;  /* what the program holds */
    int persistent;       /* prepared: starts many times */
    int active, released; /* of a prepared one: started; freed by the program */
    int tag;              /* of the message that completes a prepared one */
    void *copy;           /* the contribution as it was at the start, or its encoded message */
    size_t capacity;      /* bytes */
    dm_outcome outcome;
    int code;
    _Atomic int done;
    /* Over MPI: the message in parts, each a sum of its own. */
    int by_mpi;
    int unpaid; /* ranks that could not pay */
    MPI_Request vote, parts[DM_PARTS];
    size_t part_length, part_count;
    dither_release how;
} dm_operation;

/* Run in shared memory on the group's thread. */
int dm_worker_submit(dm_operation *operation);
/* Start over MPI; look whether it has ended. */
void dm_parts_start(dm_operation *operation, int paid);
int dm_parts_ended(dm_operation *operation);
/* Memory of at least so many bytes; 0 if there is none. */
int dm_operation_room(dm_operation *operation, size_t bytes);
/* For those who wait: an operation has ended. */
void dm_operation_ended(dm_operation *operation);

#endif
