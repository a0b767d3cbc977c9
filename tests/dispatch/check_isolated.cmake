# cmake -DNM=<nm> -DOBJECTS=<object>... -DENTRY=<function> -P check_isolated.cmake
#
# Of an object file of a level the linker may see the entry alone, beside the names of types and the
# error handler: data, of which one is as good as another.

cmake_minimum_required(VERSION 3.16)

if(NOT OBJECTS)
    message(FATAL_ERROR "No objects to check.")
endif()
foreach(object IN LISTS OBJECTS)
    execute_process(COMMAND ${NM} --defined-only --extern-only ${object}
        OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
    string(REGEX MATCHALL "[^\n]+" symbols "${symbols}")
    set(entries 0)
    foreach(symbol IN LISTS symbols)
        if(symbol MATCHES " T _Z[0-9]+${ENTRY}_[a-z0-9_]+v$")
            math(EXPR entries "${entries} + 1")
        elseif(NOT symbol MATCHES " V (_ZT[IS]|_ZN3mhr12error_detail15current_handlerE$)")
            message(SEND_ERROR "${object} lets others see:${symbol}")
        endif()
    endforeach()
    if(failed OR NOT entries EQUAL 1)
        message(SEND_ERROR "${object}: expected one entry ${ENTRY}_<level>, got ${entries}")
    endif()
endforeach()
