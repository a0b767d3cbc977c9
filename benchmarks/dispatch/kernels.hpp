#pragma once

#include "../support/layer.hpp"

// What is compiled for each level of x86-64.

struct benchmark_kernels {
    void (*forward)(mhr_bench::layer<float>&);
    void (*backward)(mhr_bench::layer<float>&);
};

const benchmark_kernels& dispatched_kernels();
