/* MPICH's communicators whose ranks are threads. */
#include "tell.h"

int main(int argc, char **argv) {
    begin(&argc, &argv);
#ifdef MPICH
    MPI_Comm threads = MPI_COMM_NULL;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (tell_error("threadcomm", MPIX_Threadcomm_init(MPI_COMM_WORLD, 2, &threads))) {
        tell("threadcomm made");
        MPIX_Threadcomm_free(&threads);
    }
#endif
    finish();
    return 0;
}
