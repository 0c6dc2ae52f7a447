/* Communicators of all makes, one after the other, many at once, and freed in another order. Each
 * sum is of rank + 1 of MPI_COMM_WORLD, so it tells who took part. */
#include "tell.h"

static int made;

static void sum_over(const char *name, MPI_Comm comm) {
    int mine = rank_in(MPI_COMM_WORLD) + 1, total = -1;
    MPI_Allreduce(&mine, &total, 1, MPI_INT, MPI_SUM, comm);
    made++;
    tell("%s %d %d", name, size_of(comm), total);
}

static void in_loops(int loops) {
    MPI_Comm comm;
    const int rank = rank_in(MPI_COMM_WORLD);
    for (int i = 0; i < loops; i++) {
        MPI_Comm_dup(MPI_COMM_WORLD, &comm);
        sum_over("dup", comm);
        MPI_Comm_free(&comm);
        MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &comm);
        sum_over("halves", comm);
        MPI_Comm_free(&comm);
        MPI_Comm_dup(MPI_COMM_WORLD, &comm); /* freed unused */
        MPI_Comm_free(&comm);
    }
}

static void at_once(void) {
    enum { MANY = 24 };
    MPI_Comm comms[MANY];
    for (int i = 0; i < MANY; i++) MPI_Comm_dup(i ? comms[i / 2] : MPI_COMM_WORLD, &comms[i]);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < MANY; i += 3) sum_over("many", comms[(i * 5) % MANY]);
    for (int i = MANY - 1; i >= 0; i--) MPI_Comm_free(&comms[i]);
}

static void of_a_group(void) {
    MPI_Group all, first;
    MPI_Comm comm;
    const int none[1] = {size_of(MPI_COMM_WORLD) - 1};
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    MPI_Group_excl(all, 1, none, &first);
    MPI_Comm_create(MPI_COMM_WORLD, first, &comm);
    if (comm != MPI_COMM_NULL) {
        sum_over("create", comm);
        MPI_Comm_free(&comm);
    }
    if (rank_in(MPI_COMM_WORLD) != none[0]) {
        MPI_Comm_create_group(MPI_COMM_WORLD, first, 7, &comm);
        sum_over("create_group", comm);
        MPI_Comm_free(&comm);
    }
    MPI_Group_free(&first);
    MPI_Group_free(&all);
}

static void of_other_makes(void) {
    MPI_Comm comm;
    MPI_Request request;
    const int size = size_of(MPI_COMM_WORLD), periodic = 1;
    MPI_Cart_create(MPI_COMM_WORLD, 1, &size, &periodic, 1, &comm);
    sum_over("cart", comm);
    MPI_Comm_free(&comm);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm);
    sum_over("host", comm);
    MPI_Comm_free(&comm);
    MPI_Comm_idup(MPI_COMM_WORLD, &comm, &request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    sum_over("idup", comm);
    MPI_Comm_free(&comm);
    sum_over("self", MPI_COMM_SELF);
    sum_over("world", MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    in_loops(argc > 2 ? atoi(argv[2]) : 10);
    at_once();
    of_a_group();
    of_other_makes();
    tell("made %d", made);
    finish();
    return 0;
}
