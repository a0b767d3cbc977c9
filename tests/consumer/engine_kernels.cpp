#include "engine_kernels.hpp"

namespace {

void apply(const mhr::batch& batch, const mhr::lora& adapter, const mhr::const_tensor_ref<2>& x,
           const mhr::tensor_ref<2>& y) {
    const mhr::lora_list adapters(&adapter, 1);
    mhr::owned_workspace memory(mhr::lora_state_size(batch, adapters));
    mhr::workspace workspace = memory;
    mhr::lora_forward(batch, adapters, x, y, mhr::take_lora_state(workspace, batch, adapters));
}

} // namespace

const engine_kernel_table& engine_kernels() {
    static const engine_kernel_table table{mhr::kernels::architecture(), apply};
    return table;
}
