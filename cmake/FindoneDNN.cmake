# oneDNN 2 by its header and library: its own package file, in Debian, asks for OpenCL's development
# files, which nothing needs that runs on processors.
#
#   oneDNN_FOUND, oneDNN_VERSION
#   DNNL::dnnl    the target

find_path(oneDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp)
find_library(oneDNN_LIBRARY dnnl)
mark_as_advanced(oneDNN_INCLUDE_DIR oneDNN_LIBRARY)

set(oneDNN_VERSION "")
if(oneDNN_INCLUDE_DIR)
    file(STRINGS ${oneDNN_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h lines
         REGEX "DNNL_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
    string(REGEX MATCHALL "[0-9]+" numbers "${lines}")
    string(REPLACE ";" "." oneDNN_VERSION "${numbers}")
endif()

include(FindPackageHandleStandardArgs)
# The matrix products of oneDNN 3 are made in another way.
if(oneDNN_VERSION VERSION_GREATER_EQUAL 3)
    set(oneDNN_INCLUDE_DIR "")
endif()
find_package_handle_standard_args(oneDNN
    REQUIRED_VARS oneDNN_LIBRARY oneDNN_INCLUDE_DIR VERSION_VAR oneDNN_VERSION)

if(oneDNN_FOUND AND NOT TARGET DNNL::dnnl)
    add_library(DNNL::dnnl UNKNOWN IMPORTED)
    set_target_properties(DNNL::dnnl PROPERTIES
        IMPORTED_LOCATION ${oneDNN_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${oneDNN_INCLUDE_DIR})
endif()
