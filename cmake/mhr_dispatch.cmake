# One program for all processors of x86-64: some of its sources compiled for several of the levels
# that -march knows, one of which is chosen when the program runs. Installed with the package.
#
# mhr_add_dispatched_library(<name> HEADER <header> SOURCES <source>...
#     [ENTRY <function>] [LEVELS <level>...])
#
# A static library. HEADER declares ENTRY (by default a function called <name>), a function of the
# global namespace without arguments that the sources define, and that gives what the program calls,
# such as a table of functions:
#
#     struct kernels { void (*forward)(...); };
#     const kernels& engine_kernels();
#
# The sources are ordinary ones, compiled once for each of LEVELS (x86-64, x86-64-v2, x86-64-v3 and
# x86-64-v4; by default all but v2) with what is set for the target <name>: its include directories,
# definitions, options and libraries. The program calls ENTRY as if there were one, and gets the
# highest level that the processor runs, or the one that the environment variable MHR_LEVEL names.
# "<name>_levels.hpp", which this function writes, declares
#
#     decltype(ENTRY)* ENTRY_for(const char* level);    // nullptr: not there, or does not run here
#     const char* const ENTRY_levels[] = {...};
#
# The levels share nothing: each becomes one object file, of which ENTRY alone can be seen from
# outside, whatever inline functions and templates (of this library, of the standard library, of
# others) the compiler left out of line. Those would otherwise be merged at the linker's whim, and an
# old processor meet instructions that it has not. (The names of types stay common, for exceptions to
# be caught, and so does the error handler.) Inline variables and static ones of functions exist once
# for each level.
#
# Users of <name> and the levels have the types of mhr in common: MHR_ISA is defined for both. In such
# a program, all files but the levels have to be compiled for one instruction set.
#
# Where this cannot be done (it takes x86-64, ELF, GCC or Clang, objcopy and GNU ld) there is one level,
# called `default`, with the program's own flags.

# Sets `reason` in the caller to what is missing, or to nothing.
function(mhr_why_no_dispatch)
    set(reason "")
    if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" OR NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
        set(reason "the processor is not one of x86-64")
    elseif(NOT CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF")
        set(reason "object files are not ELF")
    elseif(NOT CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang)$")
        set(reason "the compiler is neither GCC nor Clang")
    elseif(NOT CMAKE_OBJCOPY)
        set(reason "there is no objcopy")
    else()
        foreach(linker IN ITEMS ${CMAKE_LINKER} ld.bfd ld)
            execute_process(COMMAND ${linker} --help
                OUTPUT_VARIABLE help ERROR_QUIET RESULT_VARIABLE failed)
            if(NOT failed AND help MATCHES "--force-group-allocation")
                set(mhr_relocating_linker ${linker} PARENT_SCOPE)
                set(reason "" PARENT_SCOPE)
                return()
            endif()
        endforeach()
        set(reason "there is no GNU ld that knows --force-group-allocation (binutils 2.29)")
    endif()
    set(reason "${reason}" PARENT_SCOPE)
endfunction()

function(mhr_add_dispatched_library name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "HEADER;ENTRY" "SOURCES;LEVELS")
    if(NOT arg_HEADER OR NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "mhr_add_dispatched_library(${name}): expected HEADER <header> SOURCES "
            "<source>... [ENTRY <function>] [LEVELS <level>...], got ${ARGN}")
    endif()
    if(NOT arg_ENTRY)
        set(arg_ENTRY ${name})
    endif()
    if(NOT arg_LEVELS)
        set(arg_LEVELS x86-64 x86-64-v3 x86-64-v4)
    endif()
    foreach(level IN LISTS arg_LEVELS)
        if(NOT level MATCHES "^(default|x86-64(-v[234])?)$")
            message(FATAL_ERROR "mhr_add_dispatched_library(${name}): LEVELS: expected x86-64, "
                "x86-64-v2, x86-64-v3, x86-64-v4 or default (the program's own flags), got ${level}")
        endif()
    endforeach()
    list(REMOVE_DUPLICATES arg_LEVELS)
    list(SORT arg_LEVELS)

    mhr_why_no_dispatch()
    if(reason AND NOT arg_LEVELS STREQUAL "default")
        message(STATUS "${name}: compiled for one level only, as ${reason}")
        set(arg_LEVELS default)
    endif()

    set(folder ${CMAKE_CURRENT_BINARY_DIR}/${name})
    get_property(several_configurations GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
    if(several_configurations)
        string(APPEND folder /$<CONFIG>) # needs CMake 3.20
    endif()
    get_filename_component(header ${arg_HEADER} ABSOLUTE)
    set(declarations "")
    set(rows "")
    set(names "")
    set(objects "")
    foreach(level IN LISTS arg_LEVELS)
        string(MAKE_C_IDENTIFIER ${level} suffix)
        set(function ${arg_ENTRY}_${suffix})
        string(APPEND declarations "decltype(${arg_ENTRY}) ${function};\n")
        string(APPEND rows "    {\"${level}\", ${function}},\n")
        string(APPEND names "\"${level}\", ")

        set(compiled ${name}_${suffix})
        add_library(${compiled} OBJECT ${arg_SOURCES})
        foreach(property IN ITEMS INCLUDE_DIRECTORIES COMPILE_DEFINITIONS COMPILE_OPTIONS)
            set_property(TARGET ${compiled} APPEND PROPERTY ${property}
                $<TARGET_PROPERTY:${name},${property}>)
        endforeach()
        target_link_libraries(${compiled} PRIVATE $<TARGET_PROPERTY:${name},LINK_LIBRARIES>)
        target_compile_definitions(${compiled} PRIVATE ${arg_ENTRY}=${function})
        if(level STREQUAL "default")
            list(APPEND objects $<TARGET_OBJECTS:${compiled}>)
            continue()
        endif()
        # What is left to the linker's optimiser is no object file yet.
        set_target_properties(${compiled} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
        target_compile_options(${compiled} PRIVATE -march=${level} -fno-lto)
        if(level STREQUAL "x86-64-v4" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            # Unoptimised, GCC has macros for some intrinsics of AVX-512, which xsimd gives its batches.
            target_compile_options(${compiled} PRIVATE $<$<OR:$<CONFIG:Debug>,$<CONFIG:>>:-O1>)
        endif()
        # Unique symbols, which GCC gives to static variables of inline functions, cannot be made local.
        if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            target_compile_options(${compiled} PRIVATE -fno-gnu-unique)
        endif()
        if(level STREQUAL "x86-64-v4" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            # The AVX-512 intrinsics of GCC 12 trip over them themselves (GCC bug 105593).
            target_compile_options(${compiled} PRIVATE
                -Wno-maybe-uninitialized -Wno-uninitialized)
        endif()
        # Groups of sections are what the linker keeps one of, even if their symbols are local.
        string(LENGTH ${function} length)
        set(object ${folder}/${suffix}.o)
        add_custom_command(OUTPUT ${object}
            COMMAND ${mhr_relocating_linker} -r --force-group-allocation
                -o ${folder}/${suffix}_whole.o $<TARGET_OBJECTS:${compiled}>
            COMMAND ${CMAKE_OBJCOPY} --wildcard --keep-global-symbol=_Z${length}${function}v
                --keep-global-symbol=_ZTI* --keep-global-symbol=_ZTS*
                --keep-global-symbol=_ZN3mhr12error_detail*
                ${folder}/${suffix}_whole.o ${object}
            DEPENDS ${compiled} $<TARGET_OBJECTS:${compiled}>
            COMMENT "Isolating ${compiled}"
            COMMAND_EXPAND_LISTS VERBATIM)
        list(APPEND objects ${object})
    endforeach()

    set(made "// Made by mhr_add_dispatched_library.\n")
    file(GENERATE OUTPUT ${folder}/${name}_levels.hpp CONTENT "${made}#pragma once

#include \"${header}\"

/// What the function was compiled for, ascending.
inline const char* const ${arg_ENTRY}_levels[] = {${names}};

/// The function of a level, or nullptr if there is none or it does not run here.
decltype(${arg_ENTRY})* ${arg_ENTRY}_for(const char* level);
")
    file(GENERATE OUTPUT ${folder}/${name}_levels.cpp CONTENT "${made}#include \"${name}_levels.hpp\"

#include <cstdlib>

#include <mhr/compiled/levels.hpp>

${declarations}
namespace {

constexpr mhr::function_of_level<decltype(${arg_ENTRY})> functions[] = {
${rows}};

} // namespace

decltype(${arg_ENTRY})* ${arg_ENTRY}_for(const char* level) {
    return mhr::find_level(functions, level);
}

decltype(${arg_ENTRY}()) ${arg_ENTRY}() {
    static const auto chosen = mhr::choose_level(functions, std::getenv(\"MHR_LEVEL\"));
    return chosen();
}
")
    add_library(${name} STATIC ${folder}/${name}_levels.cpp ${objects})
    target_link_libraries(${name} PUBLIC mhr::mhr)
    target_include_directories(${name} PUBLIC ${folder})
    target_compile_definitions(${name} PUBLIC MHR_ISA=dispatched)
endfunction()
