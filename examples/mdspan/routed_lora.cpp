// Routed LoRA on std::mdspan (C++23), of static or dynamic extents and of any strided layout:
// y += scale * (x A) B, where A and B are mixed from the layer's modules for the task of each row.

#include <cstddef>
#include <cstdio>
#include <mdspan>
#include <vector>

#include <mhr/hosts/mdspan.hpp>
#include <mhr/mhr.hpp>

int main() {
    constexpr std::size_t rows = 4, in = 8, out = 12, heads = 4, modules = 3, rank = 2, tasks = 5;
    using row_major = std::mdspan<float, std::dextents<std::size_t, 2>>;
    using column_major = std::mdspan<float, std::dextents<std::size_t, 2>, std::layout_left>;

    // The host's: activations, the output of its own layer, and which task each row is of (-1:
    // none).
    std::vector<float> x_memory(rows * in, 0.5F), y_memory(rows * out, 1.0F);
    const row_major x(x_memory.data(), rows, in);
    const column_major y(y_memory.data(), rows, out);
    const int ids[rows] = {4, 2, -1, 4};
    const std::mdspan task_of_row(ids, std::extents<int, rows>{});

    // An inventory as the paper's code keeps it, modules first, which mhr wants to see heads first.
    std::vector<float> a_memory(modules * in * rank, 0.1F), b_memory(modules * rank * out);
    const std::mdspan a(a_memory.data(), std::extents<int, modules, heads, in / heads, rank>{});
    const std::mdspan b(b_memory.data(), std::extents<int, modules, rank, heads, out / heads>{});
    for (int module = 0; module < b.extent(0); ++module)
        for (int k = 0; k < b.extent(1); ++k)
            for (int head = 0; head < b.extent(2); ++head)
                for (int column = 0; column < b.extent(3); ++column)
                    b[module, k, head, column] = 0.1F * static_cast<float>(module);

    // The router: task 4 prefers the last module everywhere, the others have no preference.
    std::vector<float> z(tasks * heads * modules), w(tasks * heads * modules);
    const std::mdspan logits(z.data(), std::extents<int, tasks, heads, modules>{});
    for (int head = 0; head < logits.extent(1); ++head)
        logits[4, head, 2] = 5;

    // Once for a batch: group the rows by task, and route the distinct tasks.
    using mhr::mdspan::view_of;
    mhr::batch_plan plan;
    plan.assign_rows(view_of(task_of_row));
    const auto weights = view_of(
        std::mdspan(w.data(), std::dextents<std::size_t, 3>(plan.entries(), heads, modules)));
    mhr::router_forward({}, view_of(logits), plan.tasks(), mhr::routing_rule{mhr::sigmoid_gate{}},
                        weights);

    // For each layer.
    const mhr::routed_lora layer{view_of(a).transpose(0, 1),
                                 view_of(b).transpose(1, 2).transpose(0, 1), weights, 1.0 / rank};
    const mhr::batch batch{plan};
    mhr::owned_workspace memory(mhr::routed_lora_state_size(batch, layer));
    mhr::workspace workspace = memory;
    const auto state = mhr::take_routed_lora_state(workspace, batch, layer);
    mhr::routed_lora_forward(batch, layer, view_of(x), view_of(y), state);

    // The results of mhr are mdspans again: here, the adapter that was mixed for the first of the
    // tasks.
    const auto mixed = mhr::mdspan::span_of(state.mixed.b.slice(0, 0).as<float>());
    std::printf("y: task 4 %.4f, task 2 %.4f, base only %.4f; B of the first [%td, %td], %.4f\n",
                y[0, 0], y[1, 0], y[2, 0], mixed.extent(0), mixed.extent(1), mixed[0, 0]);
    return y[0, 0] > y[1, 0] && y[1, 0] > y[2, 0] ? 0 : 1;
}
