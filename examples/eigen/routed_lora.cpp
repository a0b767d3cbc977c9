// Routed LoRA on Eigen's matrices, of whatever storage order: y += scale * (x A) B, where A and B
// are mixed from the layer's modules for the task of each row. Checked against Eigen's own
// products.

#include <algorithm>
#include <cstdio>

#include <Eigen/Core>

#include <mhr/hosts/eigen.hpp>
#include <mhr/mhr.hpp>

using Eigen::MatrixXf;
using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int main() {
    constexpr Eigen::Index rows = 6, in = 8, out = 12, heads = 4, modules = 3, rank = 2, tasks = 5;
    constexpr float scale = 1.0F / rank;

    // The host's: activations, a base layer, and which task each row is of (-1: the base layer
    // alone).
    const row_matrix x = row_matrix::Random(rows, in);
    const MatrixXf base = MatrixXf::Random(in, out);
    row_matrix y = x * base;
    const Eigen::VectorXi task_of_row = (Eigen::VectorXi(rows) << 3, 3, 0, -1, 0, 3).finished();

    // The modules, one below the other, and the router's logits, a row for each task.
    const MatrixXf a = MatrixXf::Random(modules * in, rank);
    const MatrixXf b = MatrixXf::Random(modules * rank, out);
    const MatrixXf z = MatrixXf::Random(tasks, heads * modules);

    // Once for a batch: group the rows by task, and route the distinct tasks.
    using mhr::eigen::view_of;
    mhr::batch_plan plan;
    plan.assign_rows(view_of(task_of_row));
    MatrixXf w(plan.entries(), heads * modules);
    const auto weights = view_of(w).split(1, heads);
    const auto logits = view_of(z).split(1, heads); // [tasks, heads, modules]
    mhr::router_forward({}, logits, plan.tasks(), mhr::routing_rule{mhr::sigmoid_gate{}}, weights);

    // For each layer. The same memory with the axes that mhr knows: [heads, modules, in / heads,
    // rank], [heads, modules, rank, out / heads] and [entries, heads, modules].
    const mhr::routed_lora layer{
        view_of(a).split(0, modules).split(1, heads).transpose(0, 1),
        view_of(b).split(0, modules).split(2, heads).transpose(1, 2).transpose(0, 1), weights,
        scale};
    const mhr::batch batch{plan};
    mhr::owned_workspace memory(mhr::routed_lora_state_size(batch, layer));
    mhr::workspace workspace = memory;
    const auto state = mhr::take_routed_lora_state(workspace, batch, layer);
    mhr::routed_lora_forward(batch, layer, view_of(x), view_of(y), state);

    // Compare what the layer added with what Eigen makes of the adapters that were mixed for each
    // task.
    const MatrixXf added = y - x * base;
    float largest = 0;
    for (mhr::index_t entry = 0; entry < plan.entries(); ++entry) {
        using mhr::eigen::map_of;
        const MatrixXf product = map_of(state.mixed.a.slice(0, entry).as<float>()) *
                                 map_of(state.mixed.b.slice(0, entry).as<float>());
        for (Eigen::Index row = 0; row < rows; ++row)
            if (task_of_row[row] == plan.tasks()(entry))
                largest = std::max(
                    largest, (added.row(row) - scale * x.row(row) * product).cwiseAbs().maxCoeff());
    }
    std::printf("added: task 3 %.4f, task 0 %.4f, base only %.4f; differs from Eigen by %.1e\n",
                added(0, 0), added(2, 0), added(3, 0), largest);
    return largest < 1e-5F ? 0 : 1;
}
