/* The plan file that the launcher wrote. */
#ifndef DITHER_MPI_PLAN_H
#define DITHER_MPI_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "dither.h"

typedef enum { DM_PRIVATE, DM_ENCRYPTED, DM_TEST } dm_mode;
typedef enum { DM_AUTO, DM_SHM, DM_MPI } dm_path;

typedef struct {
    int ranks, log_length; /* for messages of at most 2^log_length elements over so many ranks */
    double sigma;          /* fine steps */
    dither_grid grid;
} dm_grid;

enum { DM_CLEAR_MOST = 32, DM_NAME = 64, DM_TOKEN = 64, DM_SOCKET = 108 };

typedef struct {
    dm_mode mode;
    dm_path path;
    double clip;
    char socket[DM_SOCKET];
    char token[DM_TOKEN + 1];
    int ranks;
    size_t pool;   /* draws made ahead */
    int warm;      /* whether MPI_Init waits for them */
    double timeout;
    uint64_t lease; /* most releases to ask for at once */
    char clear[DM_CLEAR_MOST][DM_NAME];
    int clear_count;
    dm_grid *grids;
    int grid_count;
} dm_plan;

/* Read it. Returns NULL, or what is wrong with it (of static storage). */
const char *dm_plan_read(const char *path, dm_plan *plan);

#endif
