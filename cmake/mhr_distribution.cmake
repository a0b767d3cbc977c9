# Other forms of the library than its folder of headers. Only where it is the top-level project.

# The target `single_header`: single_include/mhr/mhr.hpp in the build folder.
set(MHR_SINGLE_HEADER_WITH "" CACHE STRING
    "Headers to have in the single header besides mhr/mhr.hpp, as in mhr/io/peft/peft.hpp")
find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_Interpreter_FOUND)
    add_custom_target(single_header
        COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/cmake/single_header.py
                --output ${PROJECT_BINARY_DIR}/single_include/mhr/mhr.hpp ${MHR_SINGLE_HEADER_WITH}
        VERBATIM)
endif()

# The target `reference`: HTML pages of every public symbol. One without a description is an error.
find_package(Doxygen 1.9.2 QUIET)
if(DOXYGEN_FOUND)
    configure_file(cmake/Doxyfile.in Doxyfile @ONLY)
    add_custom_target(reference
        COMMAND ${DOXYGEN_EXECUTABLE} ${PROJECT_BINARY_DIR}/Doxyfile
        VERBATIM)
endif()

# `cpack` makes a package of Debian and Ubuntu. (Recipes for vcpkg and Conan: packaging/.)
if(MHR_INSTALL)
    install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/libmhr-dev RENAME copyright
            COMPONENT debian EXCLUDE_FROM_ALL)
    set(CPACK_INSTALL_CMAKE_PROJECTS
        ${PROJECT_BINARY_DIR} mhr ALL / ${PROJECT_BINARY_DIR} mhr debian /)
    set(CPACK_GENERATOR DEB)
    set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
    set(CPACK_DEBIAN_PACKAGE_NAME libmhr-dev)
    set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
    set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
    set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
    set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
    set(CPACK_DEBIAN_PACKAGE_MAINTAINER "The mhr authors")
    set(CPACK_PACKAGE_DESCRIPTION
        "Headers that mix the LoRA modules of an inventory per task and per head, apply them to batches of
many tasks, and train modules and routing: for inference engines and trainers in C++17.")
    set(CPACK_DEBIAN_PACKAGE_DEPENDS "libxsimd-dev (>= 8.1)")
    set(CPACK_DEBIAN_PACKAGE_SUGGESTS "nlohmann-json3-dev (>= 3.9)")
    include(CPack)
endif()
