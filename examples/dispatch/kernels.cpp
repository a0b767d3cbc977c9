// An ordinary source: the build compiles it once for each level (mhr_add_dispatched_library).

#include "kernels.hpp"

namespace {

void route(mhr::executor_ref executor, mhr::tensor_view<const float, 3> logits,
           const mhr::batch_plan& plan, mhr::tensor_view<float, 3> weights) {
    mhr::router_forward(executor, logits, plan.tasks(), mhr::routing_rule{mhr::sigmoid_gate{}},
                        weights);
}

} // namespace

const kernels& engine_kernels() {
    static constexpr kernels table{mhr::default_arch::name(), route, mhr::routed_lora_forward};
    return table;
}
