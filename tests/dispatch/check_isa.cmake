# cmake -DINCLUDE=<folder of mhr/> -DXSIMD=<folders, one with xsimd/> [-DCOMPILER=<GCC or Clang>]
#     -P check_isa.cmake
#
# MHR_ISA of config.hpp tells apart whatever the headers of mhr, and those of xsimd, ask about the
# compiler's target and about how freely it computes; and each macro that it asks for changes the name.

cmake_minimum_required(VERSION 3.16)

# Of which all files of a program agree, or which change no instruction: languages, compilers,
# platforms, families of processors, and the lengths of their words.
set(common
    __cplusplus __cpp_.* __has_.* __builtin_.* __attribute__ __EXCEPTIONS _CPPUNWIND _OPENMP __GNUC__
    __clang__ __clang_major__ _MSC_VER __INTEL_COMPILER __PIC__
    _WIN32 __linux__ __APPLE__ __MINGW32__ __EMSCRIPTEN__ __ANDROID.* __GLIBC__ _GNU_SOURCE __osf__
    __x86_64__ __i386__ _M_AMD64 _M_IX86 _M_ARM.* __aarch64__ __arm__ __ARM_ARCH __alpha __riscv
    __powerpc.* _ARCH_PPC.* __s390x__ __ARCH__ __BYTE_ORDER__ __ORDER_.* __SIZEOF_INT128__
    __CHAR_UNSIGNED__
    # Of every processor that has __SSE2__, which the name tells.
    __SSE__)
list(JOIN common "|" common)

# Sets <variable> to the macros of the implementation that conditions in the headers of a folder ask.
function(macros_asked_for variable folder)
    file(GLOB_RECURSE headers ${folder}/*.hpp)
    if(NOT headers)
        message(FATAL_ERROR "No headers in ${folder}")
    endif()
    set(macros "")
    foreach(header IN LISTS headers)
        file(READ ${header} text)
        string(REPLACE "\\\n" " " text "${text}")
        string(REGEX REPLACE "[][;]" " " text "${text}")
        string(REGEX MATCHALL "\n[ \t]*#[ \t]*(if|elif)[^\n]*" conditions "\n${text}")
        string(REGEX MATCHALL "[A-Za-z0-9_]+" words "${conditions}")
        list(APPEND macros ${words})
    endforeach()
    list(REMOVE_DUPLICATES macros)
    list(FILTER macros INCLUDE REGEX "^(_[A-Z_]|FP_FAST_)")
    list(FILTER macros EXCLUDE REGEX "^(${common})$")
    set(${variable} ${macros} PARENT_SCOPE)
endfunction()

# What the name is made of stands between `#ifndef MHR_ISA` and `#ifndef MHR_INLINE`.
file(READ ${INCLUDE}/mhr/config.hpp text)
string(REGEX REPLACE "^.*\n#ifndef MHR_ISA\n" "" text "${text}")
string(REGEX REPLACE "\n#ifndef MHR_INLINE\n.*$" "" text "${text}")
string(REGEX MATCHALL "[A-Za-z0-9_]+" named "${text}")
list(REMOVE_DUPLICATES named)
list(FILTER named INCLUDE REGEX "^(_[A-Z_]|XSIMD_WITH_EMULATED$)")
list(FILTER named EXCLUDE REGEX "^(__VA_ARGS__|_)$")

set(folders ${INCLUDE}/mhr)
foreach(folder IN LISTS XSIMD)
    if(EXISTS ${folder}/xsimd/xsimd.hpp)
        list(APPEND folders ${folder}/xsimd)
    endif()
endforeach()
foreach(folder IN LISTS folders)
    macros_asked_for(macros ${folder})
    list(LENGTH macros count)
    message(STATUS "${folder}: ${count} macros of the target: ${macros}")
    if(count EQUAL 0)
        message(SEND_ERROR "No macro was found in ${folder}")
    endif()
    foreach(macro IN LISTS macros)
        if(NOT macro IN_LIST named)
            message(SEND_ERROR "${folder} depends on ${macro}, which MHR_ISA (config.hpp) does not tell")
        endif()
    endforeach()
endforeach()

# Each alone gives another name than none and than any other, but for other ways to say the same.
if(COMPILER)
    list(FILTER named EXCLUDE REGEX "^(_M_X64|_M_IX86_FP|__riscv_v_fixed_vlen)$")
    foreach(macro IN ITEMS none ${named})
        set(source ${CMAKE_CURRENT_BINARY_DIR}/isa_of_${macro}.cpp)
        file(WRITE ${source} "#include <mhr/config.hpp>\nname: MHR_ISA\n")
        execute_process(COMMAND ${COMPILER} -undef -D${macro}=1 -std=c++17 -I${INCLUDE} -E ${source}
            OUTPUT_VARIABLE output RESULT_VARIABLE failed)
        file(REMOVE ${source})
        if(failed OR NOT output MATCHES "name: ([A-Za-z0-9_]+)\n")
            message(FATAL_ERROR "MHR_ISA is no name with ${macro}: ${output}")
        endif()
        set(name ${CMAKE_MATCH_1})
        if(DEFINED of_${name})
            message(SEND_ERROR "MHR_ISA is ${name} with ${macro} as with ${of_${name}}")
        endif()
        set(of_${name} ${macro})
    endforeach()
endif()
