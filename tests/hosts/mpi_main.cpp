// This is main.cpp for a program of several processes: it fails if the tests of one rank do.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <mhr/hosts/mpi.hpp>

int main(int argc, char** argv) {
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    const int here = doctest::Context(argc, argv).run();
    int anywhere = 0;
    MPI_Allreduce(&here, &anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return anywhere;
}
