# Other forms of the library than its folder of headers. Only where it is the top-level project.

# The target `single_header`: single_include/mhr/mhr.hpp in the build folder.
set(MHR_SINGLE_HEADER_WITH "" CACHE STRING
    "Headers to have in the single header besides mhr/mhr.hpp, as in mhr/io/peft.hpp")
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
