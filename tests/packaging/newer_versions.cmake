# cmake -DSOURCE=<folder of the project> -DFOLDER=<scratch folder> -P newer_versions.cmake
#
# Whatever is asked for in a version at least is found in a later major version, though packages accept
# requests for their own major version only; and is refused in an earlier one. With the dependency
# provider and without it. Stand-ins for the packages are made here.

cmake_minimum_required(VERSION 3.25)

file(REMOVE_RECURSE ${FOLDER})
file(WRITE ${FOLDER}/source/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(newer_versions LANGUAGES NONE)
include(${SOURCE}/cmake/mhr_build.cmake)
mhr_find_at_least(\${NAME} \${AT_LEAST})
message(STATUS \"got \${NAME} \${\${NAME}_VERSION}\")
")
file(WRITE ${FOLDER}/make/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(make LANGUAGES NONE)
include(CMakePackageConfigHelpers)
write_basic_package_version_file(\${PREFIX}/\${NAME}ConfigVersion.cmake
    VERSION \${MADE} COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)
file(WRITE \${PREFIX}/\${NAME}Config.cmake \"# a stand-in\\n\")
")

# configure(<name> <at least> <version that is there> <dependency provider, or nothing>) sets output, error.
function(configure name at_least version provider)
    set(prefix ${FOLDER}/${name}-${version})
    execute_process(COMMAND ${CMAKE_COMMAND} -S ${FOLDER}/make -B ${FOLDER}/build/make
        -DPREFIX=${prefix}/lib/cmake/${name} -DNAME=${name} -DMADE=${version}
        OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
    file(REMOVE_RECURSE ${FOLDER}/build)
    execute_process(COMMAND ${CMAKE_COMMAND} -S ${FOLDER}/source -B ${FOLDER}/build/source
        -D${name}_ROOT=${prefix} -DNAME=${name} -DAT_LEAST=${at_least}
        -DCMAKE_PROJECT_TOP_LEVEL_INCLUDES=${provider} -DMHR_PROVIDER_STAGES=system
        OUTPUT_VARIABLE output ERROR_VARIABLE error)
    set(output "${output}" PARENT_SCOPE)
    set(error "${error}" PARENT_SCOPE)
endfunction()

function(expect_taken name at_least version)
    foreach(provider IN ITEMS "" ${SOURCE}/cmake/dependency_provider.cmake)
        configure(${name} ${at_least} ${version} "${provider}")
        if(NOT output MATCHES "got ${name} ${version}\n")
            message(SEND_ERROR "${name} ${version} was not taken (provider: ${provider}):\n${error}")
        endif()
    endforeach()
endfunction()

# Without the provider, which would take another of this system.
function(expect_too_old name at_least version)
    configure(${name} ${at_least} ${version} "")
    if(NOT error MATCHES "${name} ${version} is too old: mhr needs ${at_least} or newer")
        message(SEND_ERROR "${name} ${version} was not refused as too old:\n${error}")
    endif()
endfunction()

expect_taken(Eigen3 3.4 5.0.0)
expect_taken(Catch2 2.12 3.7.1)
expect_taken(nlohmann_json 3.9 3.12.0)
expect_taken(nlohmann_json 3.9 4.0.0)
expect_taken(doctest 2.4 2.4.12)
expect_too_old(Eigen3 3.4 3.3.9)
expect_too_old(doctest 2.4 2.3.8)

# So every request for a version has to be made.
file(GLOB_RECURSE scripts ${SOURCE}/CMakeLists.txt ${SOURCE}/cmake/*.cmake ${SOURCE}/examples/*.txt
     ${SOURCE}/tests/CMakeLists.txt ${SOURCE}/tests/hosts/*.txt ${SOURCE}/benchmarks/*.txt)
list(FILTER scripts EXCLUDE REGEX "/build/")
foreach(script IN LISTS scripts)
    file(STRINGS ${script} lines REGEX "^ *find_package\\([A-Za-z0-9_]+ [0-9]")
    list(FILTER lines EXCLUDE REGEX "Doxygen|99999|\\(mhr ")
    if(lines)
        message(SEND_ERROR "${script} should ask with mhr_find_at_least: ${lines}")
    endif()
endforeach()
