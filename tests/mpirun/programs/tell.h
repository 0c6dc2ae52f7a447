/* What a rank saw: lines "name words..." in PREFIX.RANK, which a test reads. Each line is written out
 * at once, so that it survives the rank. */
#ifndef TELL_H
#define TELL_H

#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *tell_file;
static const char *tell_prefix;

static void tell(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(tell_file, format, arguments);
    va_end(arguments);
    fputc('\n', tell_file);
    fflush(tell_file);
}

static inline void tell_open(const char *prefix) {
    char path[4096];
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(path, sizeof path, "%s.%d", prefix, rank);
    tell_prefix = prefix;
    tell_file = fopen(path, "w");
    if (tell_file == NULL) {
        perror(path);
        MPI_Abort(MPI_COMM_WORLD, 3);
    }
}

/* The usual beginning: PREFIX is the first argument. */
static inline void begin(int *argc, char ***argv) {
    MPI_Init(argc, argv);
    if (*argc < 2) {
        fprintf(stderr, "usage: %s PREFIX ...\n", (*argv)[0]);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    tell_open((*argv)[1]);
}

static inline void finish(void) {
    tell("end");
    fclose(tell_file);
    MPI_Finalize();
}

static inline int rank_in(MPI_Comm comm) {
    int rank;
    MPI_Comm_rank(comm, &rank);
    return rank;
}

static inline int size_of(MPI_Comm comm) {
    int size;
    MPI_Comm_size(comm, &size);
    return size;
}

/* "name error: TEXT", and nothing where a call went well. Returns whether it did. */
static inline int tell_error(const char *name, int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    if (code == MPI_SUCCESS) return 1;
    MPI_Error_string(code, text, &length);
    tell("%s error: %s", name, text);
    return 0;
}

#endif
