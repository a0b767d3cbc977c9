// What a host does for each adapted layer: plan the batch once, route once, then add the adapters
// of every row's task to the layer's output, forward and backward.

#include <cstdint>
#include <cstdio>
#include <vector>

#include <mhr/mhr.hpp>

int main() {
    using mhr::tensor_view;
    constexpr mhr::index_t rows = 6, in = 8, out = 12, heads = 4, modules = 3, rank = 2, tasks = 5;
    constexpr double scale = 1.0 / rank;

    // The host's memory. Row r belongs to task_of_row[r]; -1 is served by the base model alone.
    const std::int32_t task_of_row[rows] = {3, 3, 0, -1, 0, 3};
    std::vector<float> x(rows * in, 0.5F), y(rows * out, 1.0F), d_y(rows * out, 1.0F);
    std::vector<float> a(modules * in * rank), b(modules * rank * out), z(tasks * heads * modules);
    const tensor_view<float, 2> x_view(x.data(), {rows, in}), y_view(y.data(), {rows, out});
    const mhr::lora_inventory<float> inventory{{a.data(), {heads, modules, in / heads, rank}},
                                               {b.data(), {heads, modules, rank, out / heads}}};
    const tensor_view<float, 3> logits(z.data(), {tasks, heads, modules});
    mhr::initialise_inventory(/*seed=*/1, inventory); // b = 0: a fresh adapter changes nothing,
    mhr::initialise_logits(/*seed=*/2, logits);
    for (float& value : b)
        value = 0.1F; // so pretend that it was trained

    // Once for a batch: group the rows by task, and route the distinct tasks {0, 3}.
    mhr::batch_plan plan;
    plan.assign_rows(tensor_view<const std::int32_t, 1>(task_of_row, {rows}));
    std::vector<float> w(static_cast<std::size_t>(plan.entries() * heads * modules));
    const tensor_view<float, 3> weights(w.data(), {plan.entries(), heads, modules});
    const mhr::serial_executor executor;
    const mhr::routing_rule rule{mhr::sigmoid_gate{}}; // while training: gumbel_sigmoid_gate
    mhr::router_forward(executor, logits, plan.tasks(), rule, weights);

    // For each layer: y += scale * (x A) B, with A and B mixed once for each distinct task.
    const auto shape = mhr::shape_of(inventory);
    mhr::owned_workspace memory(mhr::routed_lora_state_size<float>(plan, shape));
    mhr::workspace workspace = memory;
    const auto state = mhr::take_routed_lora_state<float>(workspace, plan, shape);
    mhr::routed_lora_forward(executor, plan, x_view, inventory, weights, scale, y_view, state);

    // Backward: every gradient accumulates, and one that is not wanted is left absent: {}.
    std::vector<float> d_z(z.size()), d_w(w.size());
    const tensor_view<float, 3> d_weights(d_w.data(), weights.extents());
    mhr::owned_workspace scratch(mhr::routed_lora_backward_workspace_size<float>(plan, shape));
    mhr::routed_lora_backward(executor, plan, x_view, inventory, weights, scale, state,
                              tensor_view<const float, 2>(d_y.data(), {rows, out}),
                              /*d_x=*/{}, /*d_inventory=*/{}, d_weights,
                              scratch); // the routing alone: MHR-z
    mhr::router_backward(executor, logits, plan.tasks(), rule, d_weights,
                         tensor_view<float, 3>(d_z.data(), logits.extents()));
    std::printf("y: task 3 %.4f, task 0 %.4f, base only %.4f; d_logits of task 3: %.2e\n",
                y_view(0, 0), y_view(2, 0), y_view(3, 0), d_z[3 * heads * modules]);
}
