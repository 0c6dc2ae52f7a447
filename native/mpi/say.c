/* Messages for people, and error codes for the program. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "mpi_core.h"

enum { SAID_MOST = 256, CODES_MOST = 256 };

static int error_class, other_code;
static struct {
    uint64_t mark;
    int code;
} codes[CODES_MOST]; /* of texts */
static int code_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t said[SAID_MOST];
static int said_count;

uint64_t dm_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void dm_nap(long nanoseconds) {
    const struct timespec nap = {0, nanoseconds};
    nanosleep(&nap, NULL);
}

void dm_die(const char *format, ...) {
    char text[1024];
    va_list arguments;
    int begun = 0, ended = 0;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "dither: %s\n", text);
    fflush(stderr);
    PMPI_Initialized(&begun);
    PMPI_Finalized(&ended);
    if (begun && !ended) PMPI_Abort(MPI_COMM_WORLD, 1);
    _exit(1);
}

void dm_errors_init(void) {
    PMPI_Add_error_class(&error_class);
    PMPI_Add_error_string(error_class, "dither: no private result");
    PMPI_Add_error_code(error_class, &other_code);
    PMPI_Add_error_string(other_code, "dither: no private result; stderr says why");
    code_count = said_count = 0;
}

static uint64_t mark_of(const char *text) {
    uint64_t mark = 14695981039346656037u; /* FNV-1a */
    for (const char *c = text; *c; c++) mark = (mark ^ (unsigned char)*c) * 1099511628211u;
    return mark;
}

static int is_new(const char *text) {
    const uint64_t mark = mark_of(text);
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < said_count && !found; i++) found = said[i] == mark;
    if (!found && said_count < SAID_MOST) said[said_count++] = mark;
    pthread_mutex_unlock(&lock);
    return !found;
}

/* Each text has a code of its own, as far as there are any. */
static int code_of(const char *text) {
    char whole[MPI_MAX_ERROR_STRING];
    const uint64_t mark = mark_of(text);
    int code = other_code;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < code_count && codes[i].mark != mark) i++;
    if (i == code_count && i < CODES_MOST &&
        PMPI_Add_error_code(error_class, &codes[i].code) == MPI_SUCCESS) {
        codes[i].mark = mark;
        code_count++;
        snprintf(whole, sizeof whole, "dither: %s", text);
        PMPI_Add_error_string(codes[i].code, whole);
    }
    if (i < code_count) code = codes[i].code;
    pthread_mutex_unlock(&lock);
    return code;
}

int dm_fail(MPI_Comm comm, const char *kind, const char *text) {
    int rank = 0;
    const int code = code_of(text), first = is_new(kind);
    PMPI_Comm_rank(comm, &rank);
    if (rank == 0 && first) {
        fprintf(stderr, "dither: %s\n", text);
        fflush(stderr);
    }
    if (first) dm_agent_figures(); /* the handler may end the program */
    PMPI_Comm_call_errhandler(comm, code);
    return code;
}

int dm_invalid(MPI_Comm comm, int error_class) {
    PMPI_Comm_call_errhandler(comm == MPI_COMM_NULL ? MPI_COMM_WORLD : comm, error_class);
    return error_class;
}
