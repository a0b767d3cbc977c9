#include "kernels.hpp"

#include <vector>

#include <mhr/kernels/simd/arch.hpp>
#include <mhr/mhr.hpp>

using namespace mhr;

namespace {

/// The arguments of a layer, and its state.
struct call {
    batch_plan plan;
    routed_lora layer;
    const_tensor_ref<2> x;
    owned_workspace memory;
    routed_lora_state state;

    explicit call(const plain_layer& l)
        : layer{{l.a, {l.heads, l.modules, l.in / l.heads, l.rank}},
                {l.b, {l.heads, l.modules, l.rank, l.out / l.heads}},
                {l.weights, {l.entries, l.heads, l.modules}},
                l.scale},
          x(l.x, {l.rows, l.in}) {
        plan.assign_rows(tensor_view<const long, 1>(l.task_of_row, {l.rows}));
        memory.reserve(routed_lora_state_size({plan}, layer));
        workspace taken = memory;
        state = take_routed_lora_state(taken, {plan}, layer);
    }
};

void forward(const plain_layer& l, float* y) {
    const call c(l);
    routed_lora_forward({c.plan}, c.layer, c.x, {y, {l.rows, l.out}}, c.state);
}

void backward(const plain_layer& l, const float* d_y, const plain_gradients& d) {
    const call c(l);
    std::vector<float> y(static_cast<std::size_t>(l.rows * l.out));
    routed_lora_forward({c.plan}, c.layer, c.x, {y.data(), {l.rows, l.out}}, c.state);
    owned_workspace scratch(routed_lora_backward_workspace_size({c.plan}, c.layer));
    routed_lora_backward({c.plan}, c.layer, c.x, {d_y, {l.rows, l.out}}, c.state,
                         {{d.d_x, {l.rows, l.in}},
                          {d.d_a, c.layer.a.extents()},
                          {d.d_b, c.layer.b.extents()},
                          {d.d_weights, c.layer.weights.extents()}},
                         scratch);
}

void fail() {
    const long task = -7;
    batch_plan plan;
    plan.assign_rows(tensor_view<const long, 1>(&task, {1}));
}

} // namespace

const plain_kernels& test_kernels() {
    static constexpr plain_kernels table{
        static_cast<std::size_t>(kernels::lanes<float, default_arch>) * sizeof(float), forward,
        backward, fail};
    return table;
}
