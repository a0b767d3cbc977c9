// An engine that ships one binary: this file is compiled for every processor of x86-64, the kernels
// for three levels of it. The highest that runs here is chosen; MHR_LEVEL=x86-64 in the environment
// chooses another.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "engine_kernels_levels.hpp" // made by the build; an engine needs kernels.hpp alone

using mhr::tensor_view;

namespace {

constexpr mhr::index_t rows = 64, width = 1024, heads = 4, modules = 8, rank = 16, tasks = 5;

/// The host's memory: plan, logits, modules, activations.
struct layer {
    mhr::batch_plan plan;
    std::vector<float> x = std::vector<float>(rows * width, 0.5F);
    std::vector<float> a = std::vector<float>(modules * width * rank);
    std::vector<float> b = std::vector<float>(modules * rank * width, 0.01F);
    std::vector<float> z = std::vector<float>(tasks * heads * modules);

    layer() {
        std::vector<std::int32_t> task_of_row(rows);
        for (std::size_t row = 0; row < task_of_row.size(); ++row)
            task_of_row[row] = static_cast<std::int32_t>(row % 4) - 1; // -1: base model only
        plan.assign_rows(tensor_view<const std::int32_t, 1>(task_of_row.data(), {rows}));
        mhr::initialise_logits(/*seed=*/1,
                               tensor_view<float, 3>(z.data(), {tasks, heads, modules}));
        for (std::size_t i = 0; i < a.size(); ++i)
            a[i] = static_cast<float>(i % 7) - 2;
    }

    /// What the adapters add to zeros, and in how many milliseconds at best.
    std::vector<float> run(const kernels& best, double& milliseconds) const {
        const mhr::lora_inventory<const float> inventory{
            {a.data(), {heads, modules, width / heads, rank}},
            {b.data(), {heads, modules, rank, width / heads}}};
        const auto shape = mhr::shape_of(inventory);
        mhr::owned_workspace memory(mhr::routed_lora_state_size<float>(plan, shape));
        mhr::workspace workspace = memory;
        const auto state = mhr::take_routed_lora_state<float>(workspace, plan, shape);
        std::vector<float> w(static_cast<std::size_t>(plan.entries() * heads * modules));
        const tensor_view<float, 3> weights(w.data(), {plan.entries(), heads, modules});
        std::vector<float> y(rows * width);
        milliseconds = 1e9;
        for (int repetition = 0; repetition < 5; ++repetition) {
            std::fill(y.begin(), y.end(), 0.0F);
            const auto start = std::chrono::steady_clock::now();
            best.route(mhr::serial_executor{}, {z.data(), {tasks, heads, modules}}, plan, weights);
            best.add_adapters(mhr::serial_executor{}, plan, {x.data(), {rows, width}}, inventory,
                              weights, 1.0 / rank, {y.data(), {rows, width}}, state);
            const std::chrono::duration<double, std::milli> passed =
                std::chrono::steady_clock::now() - start;
            milliseconds = std::min(milliseconds, passed.count());
        }
        return y;
    }
};

} // namespace

int main() {
    const layer layer;
    double milliseconds = 0;
    const std::vector<float> y = layer.run(engine_kernels(), milliseconds);
    std::printf("chosen: %s, %.2f ms\n", engine_kernels().architecture, milliseconds);

    bool agree = true;
    for (const char* level : engine_kernels_levels) {
        const auto kernels_of_level = engine_kernels_for(level);
        if (kernels_of_level == nullptr) {
            std::printf("%-10s does not run on this processor\n", level);
            continue;
        }
        const std::vector<float> other = layer.run(kernels_of_level(), milliseconds);
        float difference = 0, largest = 0;
        for (std::size_t i = 0; i < y.size(); ++i) {
            difference = std::max(difference, std::abs(y[i] - other[i]));
            largest = std::max(largest, std::abs(y[i]));
        }
        std::printf("%-10s %s, %.2f ms, differs by %.1e of %.1e\n", level,
                    kernels_of_level().architecture, milliseconds, static_cast<double>(difference),
                    static_cast<double>(largest));
        agree = agree && difference <= 1e-4F * largest && largest > 0;
    }
    return agree ? 0 : 1;
}
