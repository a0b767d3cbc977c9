# How the project builds its own tests, examples and benchmarks. None of it reaches consumers.

# GNU's dialects would hide what other compilers refuse.
set(CMAKE_CXX_EXTENSIONS OFF)
if(NOT CMAKE_CXX_STANDARD)
    set(CMAKE_CXX_STANDARD 17)
endif()

# As many warnings as a host of the library might have on: where its include folder is not one of the
# system, what it includes is compiled with them.
set(mhr_warnings -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wfloat-equal
    -Wold-style-cast -Wshadow -Wundef -Wnull-dereference)
set(mhr_warnings_of_gcc -Wcast-align=strict)
if(NOT CMAKE_SIZEOF_VOID_P EQUAL 4)
    # Where index_t is int, casts to it are useless that are not elsewhere.
    list(APPEND mhr_warnings_of_gcc -Wuseless-cast)
endif()
set(mhr_warnings_of_clang -Weverything
    -Wno-c++98-compat -Wno-c++98-compat-pedantic # the library is C++17
    -Wno-padded # what a type's size comes to is no fault
    -Wno-weak-vtables # header-only classes have no other place for theirs
    -Wno-unsafe-buffer-usage # hosts show their memory as pointers
    -Wno-switch-default # -Wcovered-switch-default asks for the opposite
    -Wno-documentation-html -Wno-documentation-unknown-command # Clang looks between backticks, too
    -Wno-unknown-warning-option) # Clang 14 does not know all of these

# Those for the headers alone, with what tests and tools do.
set(mhr_warnings_of_gcc_for_headers
    -Weffc++ # leave members out of the lists of constructors
    -Wdouble-promotion) # print floats with printf
set(mhr_warnings_of_clang_for_headers
    -Wdouble-promotion
    -Wglobal-constructors -Wexit-time-destructors # have globals; doctest registers tests as such
    -Wextra-semi-stmt # end a macro of CLI11 with a semicolon
    -Wformat-nonliteral # print in a format that is an argument
    -Wreserved-identifier # call what the C library hides
    -Wmissing-prototypes # have functions of C that are called from elsewhere
    -Wswitch-enum) # throw in the default case
list(TRANSFORM mhr_warnings_of_clang_for_headers REPLACE "^-W" "-Wno-"
    OUTPUT_VARIABLE mhr_without_those_for_headers)

function(mhr_strict_warnings target)
    if(MSVC)
        target_compile_options(${target} PRIVATE /W4)
        return()
    endif()
    target_compile_options(${target} PRIVATE ${mhr_warnings}
        "$<$<CXX_COMPILER_ID:GNU>:${mhr_warnings_of_gcc}>"
        "$<$<CXX_COMPILER_ID:Clang>:${mhr_warnings_of_clang};${mhr_without_those_for_headers}>")
    # GCC's manual advises against -Werror beside sanitizers: they provoke false warnings.
    if(NOT MHR_SANITIZE)
        target_compile_options(${target} PRIVATE -Werror)
    endif()
endfunction()

# For a target that has nothing but the headers, behind mhr_strict_warnings.
function(mhr_strict_header_warnings target)
    target_compile_options(${target} PRIVATE
        "$<$<CXX_COMPILER_ID:GNU>:${mhr_warnings_of_gcc_for_headers}>"
        "$<$<CXX_COMPILER_ID:Clang>:${mhr_warnings_of_clang_for_headers}>")
endfunction()

# Everything that a target of ours has in common: the library, strict warnings, MHR_MARCH,
# MHR_SANITIZE and MHR_COVERAGE. The kernels are those of mhr::compiled, unless HEADER_ONLY says that
# the target compiles them itself.
function(mhr_build_options target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "HEADER_ONLY" "" "")
    if(arg_HEADER_ONLY)
        target_link_libraries(${target} PRIVATE mhr::mhr)
    else()
        target_link_libraries(${target} PRIVATE mhr::compiled)
    endif()
    mhr_strict_warnings(${target})
    # Where OpenMP is on, Eigen would run threads of its own beside those of the executors and tests,
    # which spin while they wait for each other.
    target_compile_definitions(${target} PRIVATE EIGEN_DONT_PARALLELIZE)
    if(MHR_MARCH)
        target_compile_options(${target} PRIVATE -march=${MHR_MARCH})
        # The AVX-512 intrinsics of GCC 12 trip over them themselves (GCC bug 105593).
        if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
            # What it supposes of null pointers hangs on what it inlines, and so on the processor:
            # the plain tests ask.
            target_compile_options(${target} PRIVATE -Wno-null-dereference)
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

option(MHR_WRITE_FIGURES "Let the targets `bench` and `demo` write their figures into the guides" OFF)

# mhr_write_figures(<variable> --bench|--demo <folder> <pages>...)
#
# Sets the variable to what a custom target runs besides, so that the figures of the folder's report
# stand in these pages of the project; to nothing unless MHR_WRITE_FIGURES is on.
function(mhr_write_figures variable)
    set(${variable} "" PARENT_SCOPE)
    if(MHR_WRITE_FIGURES)
        find_package(Python3 REQUIRED COMPONENTS Interpreter)
        set(${variable} COMMAND ${CMAKE_COMMAND} -E chdir ${PROJECT_SOURCE_DIR}
            ${Python3_EXECUTABLE} cmake/figures.py write ${ARGN} PARENT_SCOPE)
    endif()
endfunction()
