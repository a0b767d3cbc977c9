# How the project builds its own tests, examples and benchmarks. None of it reaches consumers.

# GNU's dialects would hide what other compilers refuse.
set(CMAKE_CXX_EXTENSIONS OFF)
if(NOT CMAKE_CXX_STANDARD)
    set(CMAKE_CXX_STANDARD 17)
endif()

function(mhr_strict_warnings target)
    if(MSVC)
        target_compile_options(${target} PRIVATE /W4)
        return()
    endif()
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
    # GCC's manual advises against -Werror beside sanitizers: they provoke false warnings.
    if(NOT MHR_SANITIZE)
        target_compile_options(${target} PRIVATE -Werror)
    endif()
endfunction()

# Everything that a target of ours has in common: the library, strict warnings, MHR_MARCH,
# MHR_SANITIZE and MHR_COVERAGE.
function(mhr_build_options target)
    target_link_libraries(${target} PRIVATE mhr::mhr)
    mhr_strict_warnings(${target})
    # Where OpenMP is on, Eigen would run threads of its own beside those of the executors and tests,
    # which spin while they wait for each other.
    target_compile_definitions(${target} PRIVATE EIGEN_DONT_PARALLELIZE)
    if(MHR_MARCH)
        target_compile_options(${target} PRIVATE -march=${MHR_MARCH})
        # The AVX-512 intrinsics of GCC 12 trip over them themselves (GCC bug 105593).
        if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
        endif()
    endif()
    if(MHR_COVERAGE)
        # The library alone, which keeps the tests fast; tests run threads.
        target_compile_options(${target} PRIVATE --coverage -fprofile-update=atomic
            "-fprofile-filter-files=.*/include/mhr/.*")
        target_link_options(${target} PRIVATE --coverage)
    endif()
    if(MHR_SANITIZE)
        list(JOIN MHR_SANITIZE "," sanitizers)
        set(flags -fsanitize=${sanitizers} -fno-sanitize-recover=all)
        target_compile_options(${target} PRIVATE ${flags} -fno-omit-frame-pointer)
        target_link_options(${target} PRIVATE ${flags})
        # Bounds checks of the standard library, which sanitizers cannot see inside an allocation.
        target_compile_definitions(${target} PRIVATE _GLIBCXX_ASSERTIONS)
    endif()
endfunction()

# find_package(name version), but any newer version will do. Packages that accept only their own
# major version would have Eigen 5 refused where 3.4 is asked for.
macro(mhr_find_at_least name version)
    find_package(${name} REQUIRED)
    # Of what another folder has found, the target may be all that there is here.
    if(DEFINED ${name}_VERSION AND ${name}_VERSION VERSION_LESS ${version})
        message(FATAL_ERROR "${name} ${${name}_VERSION} is too old: mhr needs ${version} or newer.")
    endif()
endmacro()

# file(GLOB) of sources, given as a folder and its patterns; finding none is an error.
function(mhr_glob variable)
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${ARGN})
    if(NOT sources)
        message(FATAL_ERROR "No source matches ${ARGN} in ${CMAKE_CURRENT_SOURCE_DIR}.")
    endif()
    set(${variable} ${sources} PARENT_SCOPE)
endfunction()
