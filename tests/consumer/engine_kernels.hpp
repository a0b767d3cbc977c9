#pragma once

#include <mhr/mhr.hpp>

// An engine compiles this for several levels: a table of functions, one table for each.
struct engine_kernel_table {
    const char* architecture;
    void (*apply)(const mhr::batch& batch, const mhr::lora& adapter,
                  const mhr::const_tensor_ref<2>& x, const mhr::tensor_ref<2>& y);
};

const engine_kernel_table& engine_kernels();
