/* Message lists: the AllReduces of one training step of published models. */
#ifndef LISTS_H
#define LISTS_H

#include <stddef.h>

/* Some float32 AllReduces alike, one after the other. */
typedef struct {
    size_t elements;
    double compute; /* seconds of computing before each; the accelerator's, so this core is idle */
    unsigned times;
} list_messages;

typedef struct {
    const char *name;
    const char *about;
    const list_messages *messages;
    size_t count;
} list_workload;

/* NULL where there is none of that name. */
const list_workload *list_find(const char *name);

/* The workload at a place, NULL beyond the last. */
const list_workload *list_at(size_t place);

#endif
