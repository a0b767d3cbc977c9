# Finds, or else gets, what the tests, examples and benchmarks need. The presets activate this file
# through CMAKE_PROJECT_TOP_LEVEL_INCLUDES; projects that use the library never see it.
#
# For each dependency of the table below, these stages are tried until one has it:
#   system        what find_package finds on this machine
#   distribution  the package of Debian or Ubuntu, where apt-get may be run without a password
#   upstream      the pinned and hashed release of the upstream project (header-only libraries)

set(MHR_PROVIDER_STAGES "system;distribution;upstream" CACHE STRING
    "Where to get dependencies from, in this order")
set(MHR_PROVIDER_MIRROR "" CACHE STRING
    "Folder or URL prefix that has the upstream archives; their hashes are checked all the same")

# mhr_dependency(<name>
#     PACKAGES <Debian packages> [VERSION <oldest>]
#     [TARGET <target> URL <archive> SHA256 <hash> RELEASE <its version> INCLUDE <its header folder>])
#
# Without a TARGET it is a program or data, and a Find module says whether it is there. That module
# may name the packages itself, in <name>_PACKAGES.
function(mhr_dependency name)
    cmake_parse_arguments(row "" "VERSION;TARGET;URL;SHA256;RELEASE;INCLUDE" "PACKAGES" ${ARGN})
    foreach(key IN ITEMS PACKAGES VERSION TARGET URL SHA256 RELEASE INCLUDE)
        set_property(GLOBAL PROPERTY mhr_${name}_${key} "${row_${key}}")
    endforeach()
    set_property(GLOBAL APPEND PROPERTY mhr_dependencies ${name})
endfunction()

mhr_dependency(Eigen3 PACKAGES libeigen3-dev VERSION 3.4 TARGET Eigen3::Eigen
    URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.bz2
    SHA256 b4c198460eba6f28d34894e3a5710998818515104d6e74e5cc331ce31e46e626
    RELEASE 3.4.0 INCLUDE .)
mhr_dependency(xsimd PACKAGES libxsimd-dev VERSION 8.1 TARGET xsimd
    URL https://github.com/xtensor-stack/xsimd/archive/13.2.0.tar.gz
    SHA256 edd8cd3d548c185adc70321c53c36df41abe64c1fe2c67bc6d93c3ecda82447a
    RELEASE 13.2.0 INCLUDE include)
mhr_dependency(doctest PACKAGES doctest-dev VERSION 2.4 TARGET doctest::doctest
    URL https://github.com/doctest/doctest/archive/v2.4.9.tar.gz
    SHA256 19b2df757f2f3703a5e63cee553d85596875f06d91a3333acd80a969ef210856
    RELEASE 2.4.9 INCLUDE .)
# Catch2 3 will do, too, but is more than headers.
mhr_dependency(Catch2 PACKAGES catch2 VERSION 2.12 TARGET Catch2::Catch2
    URL https://github.com/catchorg/Catch2/archive/v2.12.4.tar.gz
    SHA256 5436725bbc6ee131a0bc9545bef31f0adabbb21fbc39fb6f1b2a42c12e4f8107
    RELEASE 2.12.4 INCLUDE single_include)
mhr_dependency(nlohmann_json PACKAGES nlohmann-json3-dev VERSION 3.9
    TARGET nlohmann_json::nlohmann_json
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    SHA256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d
    RELEASE 3.11.3 INCLUDE include)
mhr_dependency(CLI11 PACKAGES libcli11-dev VERSION 2.1 TARGET CLI11::CLI11
    URL https://github.com/CLIUtils/CLI11/archive/v2.3.2.tar.gz
    SHA256 aac0ab42108131ac5d3344a9db0fdf25c4db652296641955720a4fbe52334e22
    RELEASE 2.3.2 INCLUDE include)
mhr_dependency(Gnuplot PACKAGES gnuplot-nox)
# What the benchmarks compare with.
mhr_dependency(OpenBLAS PACKAGES libopenblas-dev)
mhr_dependency(oneDNN PACKAGES libdnnl-dev)
mhr_dependency(Torch PACKAGES libtorch-dev)
mhr_dependency(WordLists)
# Hosts. Of ggml there is no package.
mhr_dependency(dlpack PACKAGES libdlpack-dev)
mhr_dependency(MPI PACKAGES libopenmpi-dev openmpi-bin)
mhr_dependency(OpenCVDnn PACKAGES libopencv-dnn-dev libopencv-imgproc-dev)

# Reads the row of a dependency into the variables PACKAGES, VERSION, ...
macro(mhr_read_dependency name)
    foreach(key IN ITEMS PACKAGES VERSION TARGET URL SHA256 RELEASE INCLUDE)
        get_property(${key} GLOBAL PROPERTY mhr_${name}_${key})
    endforeach()
    if(NOT PACKAGES)
        set(PACKAGES ${${name}_PACKAGES})
    endif()
endmacro()

function(mhr_provider_says name)
    string(REPLACE ";" " " text "${ARGN}")
    message(STATUS "${name}: ${text}")
endfunction()

# Sets mhr_find_arguments to what makes find_package load a version that will do. Packages differ in
# the versions that they accept for a requested one, so we ask each of them for its own version,
# which a search in vain for an impossible one has listed.
function(mhr_choose_version name)
    mhr_read_dependency(${name})
    set(mhr_find_arguments "" PARENT_SCOPE)
    if(NOT TARGET)
        return()
    endif()
    find_package(${name} 99999 CONFIG QUIET BYPASS_PROVIDER)
    set(chosen 99999)
    foreach(version IN LISTS ${name}_CONSIDERED_VERSIONS)
        if(version VERSION_GREATER_EQUAL VERSION)
            set(chosen ${version})
            break()
        endif()
    endforeach()
    set(mhr_find_arguments ${chosen} EXACT CONFIG PARENT_SCOPE)
endfunction()

# A macro, for find_package has to leave its variables with the caller.
macro(mhr_provide_from_system name)
    mhr_choose_version(${name})
    find_package(${name} ${mhr_find_arguments} QUIET BYPASS_PROVIDER)
    if(${name}_FOUND)
        mhr_provider_says(${name} "found on this system" ${${name}_VERSION})
    else()
        mhr_provider_says(${name} "not found on this system")
    endif()
endmacro()

# Sets mhr_apt_get to the command that runs apt-get as root, or to nothing.
function(mhr_find_apt_get)
    set(mhr_apt_get "" PARENT_SCOPE)
    find_program(apt_get apt-get NO_CACHE)
    if(NOT apt_get OR NOT EXISTS /etc/debian_version)
        return()
    endif()
    execute_process(COMMAND id -u OUTPUT_VARIABLE user OUTPUT_STRIP_TRAILING_WHITESPACE)
    set(sudo "")
    if(NOT user STREQUAL "0")
        find_program(sudo_program sudo NO_CACHE)
        if(NOT sudo_program)
            return()
        endif()
        execute_process(COMMAND ${sudo_program} -n true
            RESULT_VARIABLE refused OUTPUT_QUIET ERROR_QUIET)
        if(refused)
            return()
        endif()
        set(sudo ${sudo_program} -n)
    endif()
    # Another apt-get may be at work: wait for it for a while.
    set(mhr_apt_get ${sudo} env DEBIAN_FRONTEND=noninteractive
        ${apt_get} -q -o DPkg::Lock::Timeout=120 PARENT_SCOPE)
endfunction()

# Sets mhr_installed to whether the packages could be installed.
function(mhr_install_packages name)
    set(mhr_installed FALSE PARENT_SCOPE)
    mhr_read_dependency(${name})
    mhr_find_apt_get()
    if(NOT mhr_apt_get)
        mhr_provider_says(${name} "apt-get cannot be run here without a password")
        return()
    endif()
    if(mhr_apt_failed_${name})
        mhr_provider_says(${name} "not asking apt-get again in this build folder")
        return()
    endif()
    mhr_provider_says(${name} "installing" ${PACKAGES} "with apt-get")
    set(install ${mhr_apt_get} install -y --no-install-recommends ${PACKAGES})
    execute_process(COMMAND ${install} RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    get_property(updated GLOBAL PROPERTY mhr_apt_updated)
    if(failed AND NOT updated)
        set_property(GLOBAL PROPERTY mhr_apt_updated TRUE)
        mhr_provider_says(${name} "not to be had with the package lists as they are: updating them")
        execute_process(COMMAND ${mhr_apt_get} update OUTPUT_QUIET ERROR_QUIET)
    endif()
    if(failed)
        execute_process(COMMAND ${install} RESULT_VARIABLE failed
            OUTPUT_QUIET ERROR_VARIABLE error)
    endif()
    if(failed)
        string(STRIP "${error}" error)
        string(REGEX REPLACE "[\n;]+" " / " error "${error}")
        mhr_provider_says(${name} "apt-get failed: ${error}")
        set(mhr_apt_failed_${name} TRUE CACHE INTERNAL "")
    else()
        set(mhr_installed TRUE PARENT_SCOPE)
    endif()
endfunction()

macro(mhr_provide_from_distribution name)
    mhr_install_packages(${name})
    if(mhr_installed)
        mhr_provide_from_system(${name})
    endif()
endmacro()

# The headers alone are used: no build file of the upstream project is run.
function(mhr_provide_from_upstream name)
    mhr_read_dependency(${name})
    if(NOT URL)
        return()
    endif()
    string(TOLOWER ${name} id)
    string(TOUPPER ${name} ID)
    get_filename_component(file ${URL} NAME)
    set(archive ${CMAKE_BINARY_DIR}/_deps/${name}-${file})
    if(NOT EXISTS ${archive} AND NOT FETCHCONTENT_SOURCE_DIR_${ID})
        if(MHR_PROVIDER_MIRROR)
            set(URL ${MHR_PROVIDER_MIRROR}/${file})
            if(IS_DIRECTORY ${MHR_PROVIDER_MIRROR})
                set(URL file://${URL})
            endif()
        endif()
        mhr_provider_says(${name} "fetching ${URL}")
        # Not left to FetchContent, whose failure would end the run before our advice is given.
        file(DOWNLOAD ${URL} ${archive} STATUS status INACTIVITY_TIMEOUT 30 TLS_VERIFY ON)
        list(POP_FRONT status failed)
        if(failed)
            file(REMOVE ${archive})
            mhr_provider_says(${name} "download failed: ${status}")
            set(mhr_reason "${URL} could not be fetched" PARENT_SCOPE)
            return()
        endif()
        file(SHA256 ${archive} hash)
        if(NOT hash STREQUAL SHA256)
            file(REMOVE ${archive})
            mhr_provider_says(${name} "not used, for its SHA256 is ${hash} instead of ${SHA256}")
            set(mhr_reason "${URL} has a wrong hash" PARENT_SCOPE)
            return()
        endif()
    endif()
    mhr_provider_says(${name} "using the upstream release ${RELEASE}")
    include(FetchContent)
    FetchContent_Declare(${name} URL ${archive} URL_HASH SHA256=${SHA256}
        DOWNLOAD_EXTRACT_TIMESTAMP FALSE SOURCE_SUBDIR no-build-file-is-run)
    FetchContent_MakeAvailable(${name})
    add_library(${TARGET} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${TARGET} INTERFACE ${${id}_SOURCE_DIR}/${INCLUDE})
    set(${name}_FOUND TRUE PARENT_SCOPE)
    set(${name}_VERSION ${RELEASE} PARENT_SCOPE)
endfunction()

# Ends the run with the one line to type.
function(mhr_provider_fails name reason)
    mhr_read_dependency(${name})
    string(REPLACE ";" " " packages "${PACKAGES}")
    if(EXISTS /etc/debian_version)
        set(advice "sudo apt-get update && sudo apt-get install -y ${packages}")
    else()
        set(advice "cmake -D${name}_ROOT=<where ${name} is installed> ${CMAKE_BINARY_DIR}")
    endif()
    if(VERSION)
        string(APPEND reason ".\n  Needed: version ${VERSION} or newer")
    endif()
    unset(mhr_apt_failed_${name} CACHE)
    message(FATAL_ERROR "${name}: ${reason}.\n  Type this, then try again:\n    ${advice}\n")
endfunction()

macro(mhr_provide_dependency method name)
    # Named by dependency, as looking for one may begin with looking for another.
    set(mhr_${name}_arguments ${ARGN})
    get_property(mhr_known GLOBAL PROPERTY mhr_dependencies)
    get_property(mhr_target GLOBAL PROPERTY mhr_${name}_TARGET)
    if(mhr_target AND TARGET ${mhr_target})
        set(${name}_FOUND TRUE)
    elseif("${name}" IN_LIST mhr_known)
        set(${name}_FOUND FALSE)
        set(mhr_reason "not found by the stages ${MHR_PROVIDER_STAGES}")
        foreach(mhr_stage IN LISTS MHR_PROVIDER_STAGES)
            if(NOT ${name}_FOUND)
                cmake_language(CALL mhr_provide_from_${mhr_stage} ${name})
            endif()
        endforeach()
        if(NOT ${name}_FOUND AND "REQUIRED" IN_LIST mhr_${name}_arguments)
            # Or else find_package, which takes over, would add its own lengthy complaint.
            set(${name}_FOUND TRUE)
            mhr_provider_fails(${name} "${mhr_reason}")
        endif()
    endif()
endmacro()

cmake_language(SET_DEPENDENCY_PROVIDER mhr_provide_dependency SUPPORTED_METHODS FIND_PACKAGE)
