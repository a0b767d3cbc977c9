# cmake -DFOLDER=<folder> -P tests/packaging/vcpkg_port.cmake
#
# Runs the port of vcpkg without vcpkg: what it calls is stood in for by the few lines below, which
# configure and install as vcpkg does. Leaves the package in <folder>/packages.
cmake_minimum_required(VERSION 3.21)

get_filename_component(project "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
set(port_folder ${project}/cmake/packaging/vcpkg)
set(CURRENT_PACKAGES_DIR ${FOLDER}/packages)
set(calls "")

macro(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_QUIET)
    if(status)
        message(FATAL_ERROR "failed: ${ARGN}")
    endif()
endmacro()

macro(expect)
    if(NOT (${ARGN}))
        message(FATAL_ERROR "expected: ${ARGN}")
    endif()
endmacro()

# Each refuses arguments that it does not know, as vcpkg does.
function(vcpkg_cmake_configure)
    cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
    expect(NOT DEFINED arg_UNPARSED_ARGUMENTS)
    run(${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${FOLDER}/build
        -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${arg_OPTIONS})
    set(calls "${calls} configure" PARENT_SCOPE)
endfunction()
function(vcpkg_cmake_install)
    expect(ARGC EQUAL 0)
    run(${CMAKE_COMMAND} --install ${FOLDER}/build)
    set(calls "${calls} install" PARENT_SCOPE)
endfunction()
function(vcpkg_cmake_config_fixup)
    cmake_parse_arguments(PARSE_ARGV 0 arg "" "PACKAGE_NAME;CONFIG_PATH" "")
    expect(NOT DEFINED arg_UNPARSED_ARGUMENTS)
    expect(EXISTS ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}/mhrConfig.cmake)
    # Moves the folder to share/<port> and lets the prefix be found from there.
    file(RENAME ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH} ${CURRENT_PACKAGES_DIR}/share/mhr)
    file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR}/share/cmake)
    file(GLOB files ${CURRENT_PACKAGES_DIR}/share/mhr/*.cmake)
    set(up "get_filename_component(_IMPORT_PREFIX \"\${_IMPORT_PREFIX}\" PATH)\n")
    foreach(file IN LISTS files)
        file(READ ${file} text)
        string(REPLACE "\${CMAKE_CURRENT_LIST_DIR}/../../../" "\${CMAKE_CURRENT_LIST_DIR}/../../"
            text "${text}")
        string(REPLACE "${up}${up}" "${up}" text "${text}") # of three, one less
        file(WRITE ${file} "${text}")
    endforeach()
    set(calls "${calls} fixup" PARENT_SCOPE)
endfunction()
function(vcpkg_fixup_pkgconfig)
    expect(ARGC EQUAL 0)
    expect(EXISTS ${CURRENT_PACKAGES_DIR}/share/pkgconfig/mhr.pc)
    set(calls "${calls} pkgconfig" PARENT_SCOPE)
endfunction()
function(vcpkg_install_copyright)
    cmake_parse_arguments(PARSE_ARGV 0 arg "" "COMMENT" "FILE_LIST")
    expect(NOT DEFINED arg_UNPARSED_ARGUMENTS)
    file(COPY_FILE ${arg_FILE_LIST} ${CURRENT_PACKAGES_DIR}/share/mhr/copyright)
    set(calls "${calls} copyright" PARENT_SCOPE)
endfunction()

file(READ ${port_folder}/vcpkg.json manifest)
string(JSON name GET "${manifest}" name)
string(JSON version GET "${manifest}" version)
string(JSON needed GET "${manifest}" dependencies 2)
string(JSON json GET "${manifest}" features io dependencies 0)
file(STRINGS ${project}/include/mhr/version.hpp lines REGEX "^#define MHR_VERSION_")
string(REGEX MATCHALL "[0-9]+" numbers "${lines}")
list(JOIN numbers "." version_of_headers)
expect(name STREQUAL "mhr")
expect(version STREQUAL version_of_headers)
expect(needed STREQUAL "xsimd")
expect(json STREQUAL "nlohmann-json")

include(${port_folder}/portfile.cmake)
expect(calls STREQUAL " configure install fixup pkgconfig copyright")
expect(VCPKG_BUILD_TYPE STREQUAL "release")

# What vcpkg complains of after a build: files that belong nowhere.
file(GLOB folders RELATIVE ${CURRENT_PACKAGES_DIR}
    ${CURRENT_PACKAGES_DIR}/* ${CURRENT_PACKAGES_DIR}/share/*)
list(JOIN folders " " folders)
expect(folders STREQUAL "include share share/mhr share/pkgconfig")
