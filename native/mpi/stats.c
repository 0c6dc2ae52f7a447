/* What this rank did, for the launcher's report. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "mpi_core.h"

dm_figures dm_stats;

static uint64_t began_ns, began_ticks;

void dm_clock_start(void) {
    began_ns = dm_now();
    began_ticks = dm_ticks();
}

double dm_ticks_per_second(void) {
    const uint64_t ns = dm_now() - began_ns, ticks = dm_ticks() - began_ticks;
    return ns && ticks ? (double)ticks / (double)ns * 1e9 : 1e9;
}

typedef struct {
    char *text;
    size_t size, used;
} buffer;

static void put(buffer *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(buffer *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(to->text + to->used, to->size - to->used, format, arguments);
    va_end(arguments);
    if (length > 0 && (size_t)length < to->size - to->used) to->used += (size_t)length;
}

static const char *put_counted(buffer *to, const char *comma, const char *name, uint64_t count,
                               uint64_t refused) {
    if (!count && !refused) return comma;
    put(to, "%s\"%s\": {\"counted\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"bytes\": 0}", comma,
        name, count, refused);
    return ", ";
}

static void put_calls(buffer *to) {
    const char *comma = "";
    for (int c = 0; c < DM_CALLS; c++) {
        dm_call_figures *f = &dm_stats.calls[c];
        if (!f->protected_calls && !f->refused && !f->cleared) continue;
        put(to,
            "%s\"%s\": {\"protected\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"refused\": %" PRIu64
            ", \"cleared\": %" PRIu64 "}",
            comma, dm_call_names[c], (uint64_t)f->protected_calls, (uint64_t)f->bytes,
            (uint64_t)f->refused, (uint64_t)f->cleared);
        comma = ", ";
    }
    comma = put_counted(to, comma, "MPI_Start", dm_stats.starts, 0);
    comma = put_counted(to, comma, "MPI_Startall", dm_stats.startalls, 0);
    for (unsigned i = 0; i < dither_counted_total; i++)
        comma = put_counted(to, comma, dither_counted_names[i], dither_counted[i],
                            dither_refused[i]);
}

/* By integers: with a point in every language. */
static void put_seconds(buffer *to, const char *name, double micros, const char *after) {
    const uint64_t whole = (uint64_t)micros;
    put(to, "\"%s\": %" PRIu64 ".%06u%s", name, whole / 1000000, (unsigned)(whole % 1000000), after);
}

static void put_all(buffer *to) {
    uint64_t used, dry, wait_ns;
    dm_pools_figures(&used, &dry, &wait_ns);
    put(to, "{\"calls\": {");
    put_calls(to);
    put(to, "}, \"releases\": %" PRIu64, (uint64_t)dm_stats.releases);
    put(to, ", \"draws\": {\"used\": %" PRIu64 ", \"dry\": %" PRIu64 "}", used,
        dry + dm_stats.drawn);
    const double micro = dm_ticks_per_second() * 1e-6;
    put(to, ", \"seconds\": {");
    put_seconds(to, "clip", (double)dm_stats.clip / micro, ", ");
    put_seconds(to, "sum", (double)dm_stats.sum / micro, ", ");
    put_seconds(to, "noise", (double)wait_ns * 1e-3, ", ");
    put_seconds(to, "wait", (double)dm_stats.wait / micro, "}}");
}

char *dm_stats_json(void) {
    buffer to = {.size = 4096 + 128 * (size_t)dither_counted_total};
    to.text = malloc(to.size);
    if (!to.text) return NULL;
    const dither_arithmetic program = dither_arithmetic_enter();
    put_all(&to);
    dither_arithmetic_leave(program);
    return to.text;
}
