#include <doctest/doctest.h>

#include <mhr/compiled/levels.hpp>

#include "dispatch/plain_checks.hpp"

// dispatch/kernels.cpp, compiled for three instruction sets, by an ordinary linker in one program.

const plain_kernels& test_kernels_x86_64();
const plain_kernels& test_kernels_x86_64_v3();
const plain_kernels& test_kernels_x86_64_v4();

using namespace mhr;
using namespace mhr::test;

TEST_CASE("files compiled for different instruction sets each compute with their own") {
    // The oldest first and last: what the linker keeps of the others would end an old processor.
    const auto check = [](const plain_kernels& kernels, std::size_t vector_bytes) {
        CAPTURE(vector_bytes);
        CHECK(kernels.vector_bytes == vector_bytes);
        check_against_oracle(kernels);
        check_errors(kernels);
    };
    check(test_kernels_x86_64(), 16);
    if (runs_level("x86-64-v3")) check(test_kernels_x86_64_v3(), 32);
    if (runs_level("x86-64-v4")) check(test_kernels_x86_64_v4(), 64);
    check(test_kernels_x86_64(), 16);
}
