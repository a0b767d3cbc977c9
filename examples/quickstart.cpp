// A host does this for each adapted layer: plan the batch once, route once, then add the adapters
// of every row's task to the layer's output, forward and backward.

#include <cstdint>
#include <cstdio>
#include <vector>

#include <mhr/mhr.hpp>

int main() {
    constexpr mhr::index_t rows = 6, in = 8, out = 12, heads = 4, modules = 3, rank = 2, tasks = 5;

    // The host's memory. Row r belongs to task_of_row[r]; -1 is served by the base model alone.
    // Each tensor has a type of its own, which may be known at run time only.
    const std::int32_t task_of_row[rows] = {3, 3, 0, -1, 0, 3};
    std::vector<float> x(rows * in, 0.5F), y(rows * out, 1.0F), d_y(rows * out, 1.0F);
    std::vector<float> a(modules * in * rank), z(tasks * heads * modules);
    std::vector<mhr::bf16> b(modules * rank * out);
    const mhr::tensor_ref<3> logits(z.data(), {tasks, heads, modules});
    mhr::initialise_inventory(/*seed=*/1, {{a.data(), {heads, modules, in / heads, rank}},
                                           {b.data(), {heads, modules, rank, out / heads}}});
    mhr::initialise_logits(/*seed=*/2, logits);
    for (mhr::bf16& value : b)   // a fresh adapter has b = 0 and changes nothing,
        value = mhr::bf16(0.1F); // so pretend that it was trained

    // Once for a batch: group the rows by task, and route the distinct tasks {0, 3}.
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const std::int32_t, 1>(task_of_row, {rows}));
    const mhr::batch batch{plan}; // batch{plan, executor} for threads of the host
    std::vector<float> w(static_cast<std::size_t>(plan.entries() * heads * modules));
    const mhr::tensor_ref<3> weights(w.data(), {plan.entries(), heads, modules});
    const mhr::routing_rule rule{mhr::sigmoid_gate{}}; // while training: gumbel_sigmoid_gate
    mhr::router_forward(batch.executor, logits, plan.tasks(), rule, weights);

    // For each layer: y += scale * (x A) B, with A and B mixed once for each distinct task.
    const mhr::routed_lora layer{{a.data(), {heads, modules, in / heads, rank}},
                                 {b.data(), {heads, modules, rank, out / heads}},
                                 weights,
                                 1.0 / rank};
    mhr::owned_workspace memory(mhr::routed_lora_state_size(batch, layer));
    mhr::workspace workspace = memory;
    const auto state = mhr::take_routed_lora_state(workspace, batch, layer);
    mhr::routed_lora_forward(batch, layer, {x.data(), {rows, in}}, {y.data(), {rows, out}}, state);

    // Backward: every gradient accumulates, and one that is not wanted is left absent: {}.
    std::vector<float> d_z(z.size()), d_w(w.size());
    const mhr::tensor_ref<3> d_weights(d_w.data(), weights.extents());
    mhr::owned_workspace scratch(mhr::routed_lora_backward_workspace_size(batch, layer));
    mhr::routed_lora_backward(batch, layer, {x.data(), {rows, in}}, {d_y.data(), {rows, out}},
                              state, {/*x=*/{}, /*a=*/{}, /*b=*/{}, d_weights},
                              scratch); // the routing alone: MHR-z
    mhr::router_backward(batch.executor, logits, plan.tasks(), rule, d_weights,
                         {d_z.data(), logits.extents()});
    std::printf("y: task 3 %.4f, task 0 %.4f, base only %.4f; d_logits of task 3: %.2e\n",
                static_cast<double>(y[0]), static_cast<double>(y[2 * out]),
                static_cast<double>(y[3 * out]), static_cast<double>(d_z[3 * heads * modules]));
}
