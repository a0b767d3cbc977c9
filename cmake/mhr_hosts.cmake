# The hosts that include/mhr/hosts/ has a header for. Whose headers, tests and examples are built is
# chosen by MHR_HOSTS; the others are named with the reason why they are not.

include(CheckCXXSourceCompiles)

set(MHR_HOSTS "eigen;mdspan;dlpack" CACHE STRING
    "Hosts whose headers, tests and examples are built, of eigen;mdspan;dlpack;torch;opencv_dnn;ggml;mpi")

# mhr_find_host(<host> PACKAGE <find_package name> [TARGET <target>])
# mhr_find_host(<host> FEATURE <macro of <version>>): a part of the standard library
#
# Sets mhr_host_<host> to whether the host is asked for and was found, and mhr_host_<host>_target to
# what its users link.
macro(mhr_find_host host)
    cmake_parse_arguments(mhr_row "" "PACKAGE;TARGET;FEATURE" "" ${ARGN})
    set(mhr_host_${host} FALSE)
    set(mhr_host_${host}_target "${mhr_row_TARGET}")
    if(NOT "${host}" IN_LIST MHR_HOSTS)
        message(STATUS "Host ${host}: skipped, as MHR_HOSTS does not name it (the preset `hosts` names all)")
    elseif(mhr_row_FEATURE)
        # The standard is part of the answer's name, since the answer is kept.
        set(mhr_row_answer "mhr_cxx${CMAKE_CXX_STANDARD}_has_${mhr_row_FEATURE}")
        check_cxx_source_compiles(
            "#include <version>\nint main() { return ${mhr_row_FEATURE} > 0 ? 0 : 1; }" ${mhr_row_answer})
        if(${mhr_row_answer})
            set(mhr_host_${host} TRUE)
            message(STATUS "Host ${host}: tested with the standard library's")
        else()
            message(STATUS "Host ${host}: skipped, as the standard library has no ${mhr_row_FEATURE} in C++${CMAKE_CXX_STANDARD}")
        endif()
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

# mhr_host_example(<host> [NAME <instead of the host's>] <source>...)
#
# The program <name>_example, if the host was found. As a test, it has to run without an error.
function(mhr_host_example host)
    if(NOT mhr_host_${host})
        return()
    endif()
    cmake_parse_arguments(example "" "NAME" "" ${ARGN})
    if(NOT example_NAME)
        set(example_NAME ${host})
    endif()
    add_executable(${example_NAME}_example ${example_UNPARSED_ARGUMENTS})
    mhr_build_options(${example_NAME}_example)
    target_link_libraries(${example_NAME}_example PRIVATE ${mhr_host_${host}_target})
    add_dependencies(hosts ${example_NAME}_example)
    if(MHR_BUILD_TESTS)
        add_test(NAME examples/${example_NAME} COMMAND ${example_NAME}_example)
        set_tests_properties(examples/${example_NAME} PROPERTIES LABELS host)
    endif()
endfunction()

mhr_find_host(eigen PACKAGE Eigen3 TARGET Eigen3::Eigen)
mhr_find_host(mdspan FEATURE __cpp_lib_mdspan)
mhr_find_host(dlpack PACKAGE dlpack TARGET dlpack::dlpack)
mhr_find_host(opencv_dnn PACKAGE OpenCVDnn TARGET OpenCVDnn::OpenCVDnn)
mhr_find_host(ggml PACKAGE ggml TARGET ggml::ggml)
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

mhr_find_host(torch PACKAGE Torch TARGET torch)
if(mhr_host_torch)
    # at::parallel_for is a template that runs in the calling thread where OpenMP is off.
    find_package(OpenMP REQUIRED COMPONENTS CXX)
    list(APPEND mhr_host_torch_target OpenMP::OpenMP_CXX)
endif()
