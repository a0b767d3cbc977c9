# OpenCV's DNN module by its headers and libraries: Debian has no CMake file of OpenCV but in the
# package of all its modules, which is ten times as large.
#
#   OpenCVDnn_FOUND, OpenCVDnn_VERSION
#   OpenCVDnn::OpenCVDnn    the target: dnn, imgproc and core

find_path(OpenCVDnn_INCLUDE_DIR opencv2/dnn.hpp PATH_SUFFIXES opencv4)
set(OpenCVDnn_libraries "")
foreach(module IN ITEMS dnn imgproc core)
    find_library(OpenCVDnn_${module}_LIBRARY opencv_${module})
    mark_as_advanced(OpenCVDnn_${module}_LIBRARY)
    list(APPEND OpenCVDnn_libraries OpenCVDnn_${module}_LIBRARY)
endforeach()
mark_as_advanced(OpenCVDnn_INCLUDE_DIR)

set(OpenCVDnn_VERSION "")
if(OpenCVDnn_INCLUDE_DIR)
    file(STRINGS ${OpenCVDnn_INCLUDE_DIR}/opencv2/core/version.hpp lines
         REGEX "define CV_VERSION_(MAJOR|MINOR|REVISION) +[0-9]+")
    string(REGEX MATCHALL "[0-9]+" numbers "${lines}")
    string(REPLACE ";" "." OpenCVDnn_VERSION "${numbers}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OpenCVDnn
    REQUIRED_VARS ${OpenCVDnn_libraries} OpenCVDnn_INCLUDE_DIR VERSION_VAR OpenCVDnn_VERSION)

if(OpenCVDnn_FOUND AND NOT TARGET OpenCVDnn::OpenCVDnn)
    add_library(OpenCVDnn::OpenCVDnn UNKNOWN IMPORTED)
    set_target_properties(OpenCVDnn::OpenCVDnn PROPERTIES
        IMPORTED_LOCATION ${OpenCVDnn_dnn_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${OpenCVDnn_INCLUDE_DIR}
        INTERFACE_LINK_LIBRARIES "${OpenCVDnn_imgproc_LIBRARY};${OpenCVDnn_core_LIBRARY}")
endif()
