# The hosts that include/mhr/interop/ has a header for. Whose headers, tests and examples are built is
# chosen by MHR_HOSTS; the others are named with the reason why they are not.

set(MHR_HOSTS "eigen;mdspan;dlpack" CACHE STRING
    "Hosts whose headers, tests and examples are built, of eigen;mdspan;dlpack;torch;opencv_dnn;ggml;mpi")

# mhr_find_host(<host> [PACKAGE <find_package name> TARGET <target>])
#
# Sets mhr_host_<host> to whether the host is asked for and was found, and mhr_host_<host>_target to
# what its users link.
macro(mhr_find_host host)
    cmake_parse_arguments(mhr_row "" "PACKAGE;TARGET" "" ${ARGN})
    set(mhr_host_${host} FALSE)
    set(mhr_host_${host}_target "${mhr_row_TARGET}")
    if(NOT "${host}" IN_LIST MHR_HOSTS)
        message(STATUS "Host ${host}: skipped, as MHR_HOSTS does not name it (the preset `hosts` names all)")
    else()
        find_package(${mhr_row_PACKAGE} QUIET)
        if(${mhr_row_PACKAGE}_FOUND)
            set(mhr_host_${host} TRUE)
            message(STATUS "Host ${host}: tested with ${mhr_row_PACKAGE} ${${mhr_row_PACKAGE}_VERSION}")
        else()
            message(STATUS "Host ${host}: skipped, as find_package(${mhr_row_PACKAGE}) finds nothing")
        endif()
    endif()
endmacro()

list(APPEND CMAKE_MODULE_PATH ${PROJECT_SOURCE_DIR}/cmake)

# Builds the tests and examples of all hosts found.
add_custom_target(hosts)

mhr_find_host(mpi PACKAGE MPI TARGET MPI::MPI_CXX)

# mhr_add_mpi_test(<name> <ranks> <program> [arguments])
#
# The program as so many processes of this machine, which may have fewer processors.
function(mhr_add_mpi_test name ranks program)
    add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks}
        ${MPIEXEC_PREFLAGS} $<TARGET_FILE:${program}> ${MPIEXEC_POSTFLAGS} ${ARGN})
    # For Open MPI, which refuses to run more processes than processors, or as root in a container.
    # Where ranks share a processor, those that wait let the others work.
    set_tests_properties(${name} PROPERTIES LABELS host PROCESSORS ${ranks} TIMEOUT 300 ENVIRONMENT
        "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;\
OMPI_MCA_rmaps_base_oversubscribe=1;PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe;\
OMPI_MCA_mpi_yield_when_idle=1;OMPI_MCA_btl_vader_single_copy_mechanism=none")
endfunction()
