// A batch of requests, each with the adapter that it asks for, as a server that runs ggml's graphs
// has it: one node adds them all, whatever their ranks, types and scales. What that node cannot
// serve (here, a quantised adapter) it says beforehand, and the engine makes nodes of its own for
// it. Both ways are compared.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
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

constexpr mhr::index_t in = 512, out = 768;
constexpr int threads = 2;

/// An adapter of one layer, as it was loaded.
struct adapter {
    ggml_tensor* a; ///< ne [in, rank]
    ggml_tensor* b; ///< ne [rank, out]
    float scale;    ///< alpha / rank, times what the request asks for
};

ggml_tensor* random_tensor(ggml_context* context, ggml_type type, mhr::index_t columns,
                           mhr::index_t rows, std::mt19937& random) {
    ggml_tensor* const tensor = ggml_new_tensor_2d(context, type, columns, rows);
    std::vector<float> values(static_cast<std::size_t>(columns * rows));
    std::uniform_real_distribution<float> uniform(-0.05F, 0.05F);
    for (float& value : values)
        value = uniform(random);
    // It converts to every type of ggml's, quantised ones too.
    ggml_quantize_chunk(type, values.data(), tensor->data, 0, rows, columns, nullptr);
    return tensor;
}

/// Does what an engine does without mhr: it computes each adapter's products for all rows, and
/// keeps those of the rows that asked for it.
ggml_tensor* add_each(ggml_context* context, ggml_tensor* y, ggml_tensor* x,
                      const std::vector<adapter>& adapters,
                      const std::vector<std::int32_t>& adapter_of_row) {
    for (std::size_t n = 0; n < adapters.size(); ++n) {
        ggml_tensor* const share = ggml_new_tensor_2d(context, GGML_TYPE_F32, 1, x->ne[1]);
        for (std::size_t row = 0; row < adapter_of_row.size(); ++row)
            static_cast<float*>(share->data)[row] =
                adapter_of_row[row] == static_cast<std::int32_t>(n) ? adapters[n].scale : 0;
        ggml_tensor* const product =
            ggml_mul_mat(context, adapters[n].b, ggml_mul_mat(context, adapters[n].a, x));
        y = ggml_add(context, y, ggml_mul(context, product, share));
    }
    return y;
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
    // Requests of different lengths; -1 asks for the base model alone.
    const std::vector<std::int32_t> adapter_of_request{2, 0, -1, 3, 1, 0};
    const std::vector<std::int32_t> rows_of_request{1, 24, 1, 1, 40, 1};
    std::vector<std::int32_t> adapter_of_row;
    for (std::size_t r = 0; r < rows_of_request.size(); ++r)
        adapter_of_row.insert(adapter_of_row.end(), static_cast<std::size_t>(rows_of_request[r]),
                              adapter_of_request[r]);

    // Once for a batch: the rows of each adapter. All layers read it.
    mhr::batch_plan plan;
    const auto rows = static_cast<mhr::index_t>(adapter_of_row.size());
    plan.assign_rows(mhr::tensor_view<const std::int32_t, 1>(adapter_of_row.data(), {rows}));
    std::vector<mhr::index_t> adapter_of_entry;
    for (mhr::index_t entry = 0; entry < plan.entries(); ++entry)
        adapter_of_entry.push_back(static_cast<mhr::index_t>(plan.tasks()(entry)));
    const mhr::ggml::lora_batch batch{&plan, {adapter_of_entry.data(), {plan.entries()}}};

    std::mt19937 random(1);
    ggml_context* const context = ggml_init({std::size_t(512) << 20, nullptr, false});
    ggml_tensor* const weight = random_tensor(context, GGML_TYPE_Q8_0, in, out, random);
    ggml_tensor* const x = random_tensor(context, GGML_TYPE_F32, in, rows, random);
    const auto load = [&](ggml_type type, mhr::index_t rank, float scale) {
        return adapter{random_tensor(context, type, in, rank, random),
                       random_tensor(context, type, rank, out, random), scale};
    };
    std::vector<adapter> adapters{load(GGML_TYPE_F32, 8, 2), load(GGML_TYPE_F16, 64, 0.25F),
                                  load(GGML_TYPE_BF16, 1, 16), load(GGML_TYPE_F32, 16, 1)};

    int failures = 0;
    for (const bool quantised : {false, true}) {
        if (quantised) adapters[3] = load(GGML_TYPE_Q8_0, 32, 1);

        // For each layer: its adapters, and the node. (Kept until the graph has been computed.)
        mhr::ggml::layer_adapters of_layer(batch, in, out);
        for (const adapter& loaded : adapters)
            of_layer.add(loaded.a, loaded.b, static_cast<double>(loaded.scale));
        ggml_tensor* y = ggml_mul_mat(context, weight, x);
        const std::string why = mhr::ggml::why_not(y, x, of_layer);
        if (why.empty())
            y = mhr::ggml::lora_inplace(context, y, x, of_layer);
        else
            y = add_each(context, y, x, adapters, adapter_of_row);
        const double time = milliseconds_of(context, y);
        std::printf("%s\n", why.empty() ? "one node serves all adapters" : why.c_str());

        ggml_tensor* const other =
            add_each(context, ggml_mul_mat(context, weight, x), x, adapters, adapter_of_row);
        const double time_of_each = milliseconds_of(context, other);
        double worst = 0, largest = 0;
        for (std::size_t i = 0; i < adapter_of_row.size() * out; ++i) {
            const double got = static_cast<const float*>(y->data)[i];
            const double want = static_cast<const float*>(other->data)[i];
            worst = std::max(worst, std::abs(got - want));
            largest = std::max(largest, std::abs(want));
        }
        std::printf("  the layer takes %.2f ms, with two products for each adapter %.2f ms\n"
                    "  largest difference %.1e, of values up to %.2f\n",
                    time, time_of_each, worst, largest);
        // ggml rounds x to the type of an adapter, mhr does not.
        if (!(worst <= 5e-3 * largest) || why.empty() == quantised) ++failures;
    }
    ggml_free(context);
    return failures;
}
