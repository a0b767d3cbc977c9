# mhr_merge_tests(<variable> <folder>)
#
# Tests of one folder instantiate the same kernels over and over. This replaces the sources that the
# variable names, relative to the current folder, by files in <folder> that include up to a dozen of
# them each, so that what these have in common is compiled once: less than half of the time.
#
# Each source gets a namespace of its own there, so that names do not meet; macros may. What the
# sources include comes before all of them. One that includes something under a condition, or
# specialises a template, stays as it is.
function(mhr_merge_tests variable folder)
    set(most_in_one 12)
    set(result "")
    set(parents "")
    foreach(source IN LISTS ${variable})
        file(STRINGS ${source} lines REGEX "^(#if|#include|template <>)")
        get_filename_component(parent "${source}" DIRECTORY)
        if(parent STREQUAL "" OR lines MATCHES "#if[^;]*;#include|template <>")
            list(APPEND result ${source})
        else()
            list(APPEND parents ${parent})
            list(APPEND sources_${parent} ${source})
        endif()
    endforeach()
    list(REMOVE_DUPLICATES parents)

    foreach(parent IN LISTS parents)
        list(LENGTH sources_${parent} count)
        math(EXPR files "(${count} + ${most_in_one} - 1) / ${most_in_one}")
        math(EXPR in_one "(${count} + ${files} - 1) / ${files}")
        foreach(file RANGE 1 ${files})
            math(EXPR first "(${file} - 1) * ${in_one}")
            list(SUBLIST sources_${parent} ${first} ${in_one} sources)
            set(includes "")
            set(body "")
            foreach(source IN LISTS sources)
                # Not those in the middle of a function: snippets.
                file(STRINGS ${source} lines REGEX "^#include [<\"][a-z0-9_/]+(\\.hpp|\\.h)?[>\"]")
                list(APPEND includes ${lines})
                string(MAKE_C_IDENTIFIER ${source} name)
                string(APPEND body "namespace ${name} {\n"
                                   "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n"
                                   "} // namespace ${name}\n")
            endforeach()
            list(REMOVE_DUPLICATES includes)
            list(JOIN includes "\n" includes)
            file(GENERATE OUTPUT ${folder}/${parent}_${file}.cpp CONTENT "${includes}\n\n${body}")
            list(APPEND result ${folder}/${parent}_${file}.cpp)
        endforeach()
        # A new include has to come before the namespaces, too.
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources_${parent}})
    endforeach()
    set(${variable} ${result} PARENT_SCOPE)
endfunction()
