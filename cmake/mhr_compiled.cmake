# mhr::compiled: the kernels in a static library, for several instruction sets, of which the best is
# chosen when a program starts (the environment variable MHR_LEVEL names another). Who links it
# includes the same headers, compiles no kernel and needs no xsimd.

option(MHR_BUILD_COMPILED "Build and install the library mhr::compiled" OFF)

# What is built for one processor, or watched while it runs, has one level, with the flags of the rest.
set(levels "")
if(MHR_MARCH OR MHR_SANITIZE OR MHR_COVERAGE)
    set(levels LEVELS default)
endif()
mhr_add_dispatched_library(mhr_compiled HEADER include/mhr/compiled/kernel_table.hpp
    ENTRY mhr_kernel_table SOURCES include/mhr/compiled/level.cpp ${levels})
target_sources(mhr_compiled PRIVATE include/mhr/compiled/kernels.cpp)
add_library(mhr::compiled ALIAS mhr_compiled)
# Its users share nothing with the levels but the declarations of kernels/kernels.hpp.
set_target_properties(mhr_compiled PROPERTIES
    EXPORT_NAME compiled
    INTERFACE_LINK_LIBRARIES ""
    INTERFACE_COMPILE_DEFINITIONS MHR_COMPILED=1
    INTERFACE_INCLUDE_DIRECTORIES
        "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>;$<INSTALL_INTERFACE:include>")
target_compile_features(mhr_compiled INTERFACE cxx_std_17)
set_target_properties(mhr_compiled PROPERTIES POSITION_INDEPENDENT_CODE ON)
if(NOT MHR_BUILD_COMPILED)
    # Nobody waits for it who does not ask for it.
    get_property(targets DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
    foreach(target IN LISTS targets)
        if(target MATCHES "^mhr_compiled")
            set_target_properties(${target} PROPERTIES EXCLUDE_FROM_ALL ON)
        endif()
    endforeach()
endif()
