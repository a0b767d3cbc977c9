#pragma once

#include <mhr/mhr.hpp>

// What the engine calls of mhr, as one table: the functions are those of kernels.cpp, compiled for
// several levels of x86-64, and the table is that of the best level that the processor runs.

struct kernels {
    const char* architecture; // for the log

    void (*route)(mhr::executor_ref, mhr::tensor_view<const float, 3> logits,
                  const mhr::batch_plan&, mhr::tensor_view<float, 3> weights);
    void (*add_adapters)(mhr::executor_ref, const mhr::batch_plan&,
                         mhr::tensor_view<const float, 2> x, mhr::lora_inventory<const float>,
                         mhr::tensor_view<const float, 3> weights, double scale,
                         mhr::tensor_view<float, 2> y, mhr::routed_lora_state<float>);
};

const kernels& engine_kernels();
