#include "kernels.hpp"

#include <vector>

#include <mhr/mhr.hpp>

using namespace mhr;

namespace {

/// The views of a layer, and its state.
struct views {
    batch_plan plan;
    tensor_view<const float, 2> x;
    lora_inventory<const float> inventory;
    tensor_view<const float, 3> weights;
    owned_workspace memory;
    routed_lora_state<float> state;

    explicit views(const plain_layer& l)
        : x(l.x, {l.rows, l.in}), inventory{{l.a, {l.heads, l.modules, l.in / l.heads, l.rank}},
                                            {l.b, {l.heads, l.modules, l.rank, l.out / l.heads}}},
          weights(l.weights, {l.entries, l.heads, l.modules}) {
        plan.assign_rows(tensor_view<const long, 1>(l.task_of_row, {l.rows}));
        memory.reserve(routed_lora_state_size<float>(plan, shape_of(inventory)));
        workspace scratch = memory;
        state = take_routed_lora_state<float>(scratch, plan, shape_of(inventory));
    }
};

void forward(const plain_layer& l, float* y) {
    const views v(l);
    routed_lora_forward(serial_executor{}, v.plan, v.x, v.inventory, v.weights, l.scale,
                        tensor_view<float, 2>(y, {l.rows, l.out}), v.state);
}

void backward(const plain_layer& l, const float* d_y, const plain_gradients& d) {
    const views v(l);
    std::vector<float> y(static_cast<std::size_t>(l.rows * l.out));
    routed_lora_forward(serial_executor{}, v.plan, v.x, v.inventory, v.weights, l.scale,
                        tensor_view<float, 2>(y.data(), {l.rows, l.out}), v.state);
    owned_workspace scratch(
        routed_lora_backward_workspace_size<float>(v.plan, shape_of(v.inventory)));
    routed_lora_backward(
        serial_executor{}, v.plan, v.x, v.inventory, v.weights, l.scale, v.state,
        tensor_view<const float, 2>(d_y, {l.rows, l.out}),
        tensor_view<float, 2>(d.d_x, {l.rows, l.in}),
        lora_inventory<float>{{d.d_a, v.inventory.a.extents()}, {d.d_b, v.inventory.b.extents()}},
        tensor_view<float, 3>(d.d_weights, v.weights.extents()), scratch);
}

void fail() {
    const long task = -7;
    batch_plan plan;
    plan.assign_rows(tensor_view<const long, 1>(&task, {1}));
}

} // namespace

const plain_kernels& test_kernels() {
    static constexpr plain_kernels table{
        static_cast<std::size_t>(detail::lanes<float, default_arch>) * sizeof(float), forward,
        backward, fail};
    return table;
}
