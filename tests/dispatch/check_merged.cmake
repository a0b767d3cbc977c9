# cmake -DNM=<nm> -DOBJDUMP=<objdump> -DOLD=<object> -DNEW=<object> -P check_merged.cmake
#
# What the linker merges of two object files, which are compiled from the same source for different
# instruction sets, is no function of mhr (but of its errors; constants of types that all files share
# are as good from one as from another), and no function that needs the newer instructions.

cmake_minimum_required(VERSION 3.16)

foreach(object IN ITEMS OLD NEW)
    execute_process(COMMAND ${NM} --defined-only --extern-only ${${object}}
        OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "nm fails on ${${object}}")
    endif()
    string(REGEX MATCHALL "[WVu] [^\n]+" ${object}_symbols "${symbols}")
endforeach()
set(merged 0)
foreach(typed IN LISTS NEW_symbols)
    if(NOT typed IN_LIST OLD_symbols)
        continue()
    endif()
    math(EXPR merged "${merged} + 1")
    # Functions are weak (W), constants are weak or unique objects (V, u).
    string(SUBSTRING "${typed}" 0 1 type)
    string(SUBSTRING "${typed}" 2 -1 symbol)
    if(symbol MATCHES "3mhr" AND NOT symbol MATCHES "^_Z(N|T[ISV]N?)3mhr(5error|12error_detail)"
       AND (type STREQUAL "W" OR NOT symbol MATCHES "^_ZNK?3mhr[0-9]+[a-z_]+[0-9]+[a-z_]+E$"))
        message(SEND_ERROR "Both object files have ${symbol}")
    endif()
    execute_process(COMMAND ${OBJDUMP} --disassemble=${symbol} --no-show-raw-insn ${NEW}
        OUTPUT_VARIABLE text)
    # VEX and EVEX are told by their v, the rest by name.
    if(text MATCHES
            "\t(v[a-z0-9]+|andn|bextr|blsi|blsmsk|blsr|lzcnt|movbe|mulx|pdep|pext|rorx|sarx|shlx|shrx|tzcnt) ")
        message(SEND_ERROR "${symbol} may be merged, and needs ${CMAKE_MATCH_1}")
    endif()
endforeach()
message(STATUS "${merged} symbols are in both object files")
if(merged EQUAL 0)
    message(SEND_ERROR "No symbol was compared.")
endif()
