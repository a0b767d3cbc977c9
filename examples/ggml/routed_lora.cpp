// A layer of a ggml graph with an adapter for each task of the batch: many sequences of different
// tasks, and of none, in one graph. Routing and mixing are nodes of the graph, too. In the end each
// task's rows are compared with what its adapter, merged into the layer's weight, gives for them.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <ggml-cpu.h>
#include <ggml.h>

#include <mhr/hosts/ggml.hpp>
#include <mhr/mhr.hpp>

namespace {

constexpr mhr::index_t in = 512, out = 768, rank = 8, heads = 4, modules = 6, tasks = 10;
constexpr double scale = 1.0 / rank;
constexpr int threads = 2;

/// The weights of a batch's tasks, ne [modules, heads, entries]: their rows of the table of logits,
/// each gate over the sum of its head. `ids` are those of the plan's tasks.
ggml_tensor* route(ggml_context* context, ggml_tensor* logits, ggml_tensor* ids) {
    ggml_tensor* const gates = ggml_sigmoid(context, ggml_get_rows(context, logits, ids));
    ggml_tensor* const of_heads =
        ggml_reshape_3d(context, gates, modules, heads, ggml_nelements(ids));
    return ggml_div(context, of_heads, ggml_sum_rows(context, of_heads));
}

/// Computes it ten times, and tells how long the fastest took.
double milliseconds_of(ggml_context* context, ggml_tensor* result) {
    ggml_cgraph* const graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    double least = HUGE_VAL;
    for (int i = 0; i < 10; ++i) {
        const auto start = std::chrono::steady_clock::now();
        ggml_graph_compute_with_ctx(context, graph, threads);
        const std::chrono::duration<double, std::milli> time =
            std::chrono::steady_clock::now() - start;
        least = std::min(least, time.count());
    }
    return least;
}

} // namespace

int main() {
    // Nine sequences of 16 rows each; -1 is served by the base model alone.
    const std::vector<std::int32_t> task_of_sequence{3, 0, -1, 3, 7, 9, 0, -1, 3};
    const std::vector<std::int32_t> rows_of_sequence(task_of_sequence.size(), 16);
    const auto sequences = static_cast<mhr::index_t>(task_of_sequence.size());
    mhr::batch_plan plan;
    plan.assign_sequences(
        mhr::tensor_view<const std::int32_t, 1>(task_of_sequence.data(), {sequences}),
        mhr::tensor_view<const std::int32_t, 1>(rows_of_sequence.data(), {sequences}));
    const mhr::ggml::routed_batch batch{&plan, scale}; // kept until the graph is computed

    // The model's tensors: the layer's weight, and the inventory and logits as PEFT stores them.
    ggml_context* const context = ggml_init({std::size_t(256) << 20, nullptr, false});
    ggml_tensor* const weight = ggml_new_tensor_2d(context, GGML_TYPE_F32, in, out);
    ggml_tensor* const a =
        ggml_new_tensor_4d(context, GGML_TYPE_F16, rank, in / heads, modules, heads);
    ggml_tensor* const b =
        ggml_new_tensor_4d(context, GGML_TYPE_F16, out / heads, rank, modules, heads);
    ggml_tensor* const logits = ggml_new_tensor_2d(context, GGML_TYPE_F32, modules * heads, tasks);
    ggml_tensor* const x = ggml_new_tensor_2d(context, GGML_TYPE_F32, in, plan.rows());
    using mhr::ggml::ref_of;
    std::mt19937 random(1);
    const auto fill = [&](const auto& view, float size) {
        std::uniform_real_distribution<float> uniform(-size, size);
        for (mhr::index_t i = 0; i < view.extent(0); ++i)
            for (mhr::index_t j = 0; j < view.extent(1); ++j)
                view(i, j) = uniform(random);
    };
    fill(ref_of<2>(weight).as<float>(), 0.05F);
    fill(ref_of<2>(x).as<float>(), 1);
    fill(ref_of<2>(logits).as<float>(), 3);
    mhr::initialise_inventory(/*seed=*/2, {ref_of<4>(a), ref_of<4>(b)});
    const auto b_values = ref_of<4>(b).as<mhr::f16>();
    for (mhr::index_t h = 0; h < heads; ++h) // b = 0 otherwise: pretend that it was trained
        for (mhr::index_t m = 0; m < modules; ++m)
            for (mhr::index_t k = 0; k < rank; ++k)
                for (mhr::index_t o = 0; o < out / heads; ++o)
                    b_values(h, m, k, o) = mhr::f16(std::sin(float(h + 3 * m + 7 * k + o)));

    // The layer: y = x W^T + scale (x A) B, with the A and B of each row's task.
    ggml_tensor* const ids = ggml_new_tensor_1d(context, GGML_TYPE_I32, plan.entries());
    for (mhr::index_t entry = 0; entry < plan.entries(); ++entry)
        mhr::ggml::view_of<std::int32_t, 1>(ids)(entry) =
            static_cast<std::int32_t>(plan.tasks()(entry));
    ggml_tensor* const weights = route(context, logits, ids);
    ggml_tensor* const base = ggml_mul_mat(context, weight, x);
    const double base_time = milliseconds_of(context, base);
    const mhr::ggml::routed_tensors layer{weights, a, b};
    if (const std::string why = mhr::ggml::why_not(base, x, layer, batch); !why.empty()) {
        std::puts(why.c_str()); // an engine serves such a layer otherwise
        return 1;
    }
    ggml_tensor* const y = mhr::ggml::routed_lora_inplace(context, base, x, layer, batch);
    const double time = milliseconds_of(context, y);

    // Merging gives the same: each task has a copy of the weight, and ggml's product is enough.
    const auto y_view = ref_of<2>(y).as<float>();
    double worst = 0, largest = 0;
    const auto compare = [&](mhr::tensor_view<const mhr::index_t, 1> rows, ggml_tensor* merged) {
        ggml_tensor* const product = ggml_mul_mat(context, merged, x);
        ggml_cgraph* const graph = ggml_new_graph(context);
        ggml_build_forward_expand(graph, product);
        ggml_graph_compute_with_ctx(context, graph, threads);
        const auto want = ref_of<2>(product).as<float>();
        for (mhr::index_t i = 0; i < rows.extent(0); ++i)
            for (mhr::index_t o = 0; o < out; ++o) {
                worst = std::max(worst, double(std::abs(y_view(rows(i), o) - want(rows(i), o))));
                largest = std::max(largest, double(std::abs(want(rows(i), o))));
            }
    };
    compare(plan.base_rows(), weight);
    for (mhr::index_t entry = 0; entry < plan.entries(); ++entry) {
        std::vector<float> of_a(in * rank), of_b(rank * out);
        mhr::mix_lora_forward({}, ref_of<3>(weights).block(0, entry, 1),
                              {ref_of<4>(a), ref_of<4>(b)},
                              {{of_a.data(), {1, in, rank}}, {of_b.data(), {1, rank, out}}});
        ggml_tensor* const merged = ggml_dup_tensor(context, weight);
        std::copy_n(static_cast<const float*>(weight->data), in * out,
                    static_cast<float*>(merged->data));
        mhr::merge_lora({}, {{of_a.data(), {in, rank}}, {of_b.data(), {rank, out}}, scale},
                        ref_of<2>(merged));
        compare(plan.rows_of(entry), merged);
    }
    ggml_free(context);

    std::printf(
        "%d rows of %d tasks and of none: the layer alone %.2f ms, with routing, mixing and "
        "LoRA %.2f ms\nlargest difference from merged weights: %.1e, of values up to %.1f\n",
        static_cast<int>(plan.rows()), static_cast<int>(plan.entries()), base_time, time, worst,
        largest);
    return worst <= 1e-5 * largest ? 0 : 1;
}
