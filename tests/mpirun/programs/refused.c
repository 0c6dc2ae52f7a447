/* Calls that no noise protects. Under MPI_ERRORS_RETURN each must come back with an error, and what
 * follows must still work. With an argument "default" the first one meets the default handler. */
#include <string.h>

#include "forms.h"
#include "tell.h"

enum { COUNT = 10 };

static double room[2 * COUNT], result[2 * COUNT];

static void last_one(void *in, void *in_out, int *count, MPI_Datatype *type) {
    (void)type;
    memcpy(in_out, in, (size_t)*count * sizeof(double));
}

static void call(const char *name, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    int kind = MPI_SUCCESS;
    for (int i = 0; i < 2 * COUNT; i++) result[i] = 77.0;
    const int code = MPI_Allreduce(room, result, COUNT, type, op, comm);
    MPI_Error_class(code, &kind);
    if (tell_error(name, code)) tell("%s passed %g %g", name, result[0], result[1]);
    else if (kind == MPI_SUCCESS) tell("%s has no class", name);
}

static void operations(void) {
    MPI_Op own;
    const struct {
        const char *name;
        MPI_Op op;
    } known[] = {{"max", MPI_MAX}, {"min", MPI_MIN}, {"prod", MPI_PROD}, {"replace", MPI_REPLACE}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        call(known[i].name, MPI_DOUBLE, known[i].op, MPI_COMM_WORLD);
    call("land", MPI_INT, MPI_LAND, MPI_COMM_WORLD);
    call("bxor", MPI_INT, MPI_BXOR, MPI_COMM_WORLD);
    call("maxloc", MPI_DOUBLE_INT, MPI_MAXLOC, MPI_COMM_WORLD);
    MPI_Op_create(last_one, 0, &own);
    call("own", MPI_DOUBLE, own, MPI_COMM_WORLD);
    MPI_Op_free(&own);
}

static void types(void) {
    MPI_Datatype pair;
    const struct {
        const char *name;
        MPI_Datatype type;
    } known[] = {
        {"unsigned", MPI_UNSIGNED},    {"uint64", MPI_UINT64_T},         {"short", MPI_SHORT},
        {"int8", MPI_INT8_T},          {"char", MPI_SIGNED_CHAR},        {"byte", MPI_UINT8_T},
        {"complex", MPI_C_FLOAT_COMPLEX}, {"long_double", MPI_LONG_DOUBLE},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        call(known[i].name, known[i].type, MPI_SUM, MPI_COMM_WORLD);
    MPI_Type_contiguous(2, MPI_DOUBLE, &pair);
    MPI_Type_commit(&pair);
    call("derived", pair, MPI_SUM, MPI_COMM_WORLD);
    MPI_Type_free(&pair);
}

/* Every form, with an operation that is none. */
static void other_forms(void) {
    const job job = {room, result, COUNT, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD};
    for (int f = 0; f < FORMS; f++) {
        char name[64];
        snprintf(name, sizeof name, "form_%s", forms[f].name);
        if (tell_error(name, forms[f].run(&job))) tell("%s passed", name);
    }
}

static void between_groups(void) {
    MPI_Comm half, other;
    const int rank = rank_in(MPI_COMM_WORLD);
    MPI_Comm_split(MPI_COMM_WORLD, rank > 0, 0, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, rank > 0 ? 0 : 1, 3, &other);
    MPI_Comm_set_errhandler(other, MPI_ERRORS_RETURN);
    call("inter", MPI_DOUBLE, MPI_SUM, other);
    MPI_Comm_free(&other);
    MPI_Comm_free(&half);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    const int returned = argc < 3 || strcmp(argv[2], "default") != 0;
    if (returned) MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    for (int i = 0; i < COUNT; i++) room[i] = 1.0 + rank_in(MPI_COMM_WORLD);
    operations();
    types();
    other_forms();
    if (size_of(MPI_COMM_WORLD) > 1) between_groups();
    call("sum", MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    finish();
    return 0;
}
