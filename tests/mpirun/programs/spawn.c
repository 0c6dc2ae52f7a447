/* Programs that start programs: with both functions, each rank by itself. "child" as the last word makes a
 * started one, which sums on its own and says what it got to its parent. */
#include <string.h>

#include "tell.h"

enum { SUM = 7 };

static int child(MPI_Comm parent) {
    double one = 1.0, sum = 0.0;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (MPI_Allreduce(&one, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD)) sum = -1.0;
    MPI_Send(&sum, 1, MPI_DOUBLE, 0, SUM, parent);
    MPI_Finalize();
    return 0;
}

static void started(const char *name, int code, MPI_Comm children) {
    double sum = 0.0;
    if (!tell_error(name, code)) return;
    MPI_Recv(&sum, 1, MPI_DOUBLE, 0, SUM, children, MPI_STATUS_IGNORE);
    tell("%s started %g", name, sum);
}

int main(int argc, char **argv) {
    MPI_Comm parent, children = MPI_COMM_NULL;
    MPI_Init(&argc, &argv);
    MPI_Comm_get_parent(&parent);
    if (parent != MPI_COMM_NULL) return child(parent);
    tell_open(argv[1]);
    char *words[] = {"child", NULL}, **both[] = {words}, *names[] = {argv[0]};
    MPI_Info info = MPI_INFO_NULL;
    const int one = 1;
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    int code = MPI_Comm_spawn(argv[0], words, 1, info, 0, MPI_COMM_SELF, &children,
                              MPI_ERRCODES_IGNORE);
    started("spawn", code, children);
    if (argc > 2 && !strcmp(argv[2], "once")) {
        finish();
        return 0;
    }
    code = MPI_Comm_spawn_multiple(1, names, both, &one, &info, 0, MPI_COMM_SELF, &children,
                                   MPI_ERRCODES_IGNORE);
    started("multiple", code, children);
    finish();
    return 0;
}
