#include <mhr/mhr.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "support/tensor.hpp"

using mhr::index_t;
using mhr::test::tensor;

TEST_CASE("README: what a host does") {
    constexpr index_t rows = 6, in = 8, out = 12, heads = 4, modules = 3, rank = 2, tasks = 5;
    const double scale = 0.5;
    const int task_of_row[rows] = {3, 3, 0, -1, 0, 3};
    const mhr::serial_executor executor;
    constexpr std::size_t a_size = modules * in * rank, b_size = modules * rank * out;
    std::vector<float> a_values(a_size), b_values(b_size, 0.5F);
    float* const a = a_values.data();
    float* const b = b_values.data();
    // Module m has a = m: of logits that are all 0, the mixture is 1.
    for (std::size_t i = 0; i < a_size; ++i)
        a[i] = static_cast<float>(i / (in / heads * rank) % modules);

    // Two distinct tasks, which the plan of the snippet will find.
    tensor<float, 3> z{{tasks, heads, modules}}, d_z{{tasks, heads, modules}};
    tensor<float, 3> weights_of_batch{{2, heads, modules}}, d_weights_of_batch{{2, heads, modules}};
    tensor<float, 4> d_modules_a{{heads, modules, in / heads, rank}};
    tensor<float, 4> d_modules_b{{heads, modules, rank, out / heads}};
    tensor<float, 2> d_x_of_batch{{rows, in}};
    std::vector<float> x_values(rows * in, 1), d_y_values(rows * out, 1);
    std::vector<mhr::bf16> y_values(rows * out, mhr::bf16(1));
    const float* const x = x_values.data();
    const float* const d_y = d_y_values.data();
    void* const y = y_values.data(); // memory of which only the element type says what it holds
    const auto logits = z.view(), d_logits = d_z.view();
    const auto weights = weights_of_batch.view(), d_weights = d_weights_of_batch.view();
    const auto d_a = d_modules_a.view();
    const auto d_b = d_modules_b.view();
    const auto d_x = d_x_of_batch.view();

    // The snippet leaves memory to the host.
    mhr::batch_plan same_plan;
    same_plan.assign_rows(mhr::tensor_view<const int, 1>(task_of_row, {rows}));
    const mhr::batch same_batch{same_plan};
    const mhr::routed_lora same_layer{d_a, d_b, weights};
    mhr::owned_workspace state_memory(mhr::routed_lora_state_size(same_batch, same_layer));
    mhr::workspace state_workspace = state_memory;
    const auto state = mhr::take_routed_lora_state(state_workspace, same_batch, same_layer);
    mhr::owned_workspace workspace(
        mhr::routed_lora_backward_workspace_size(same_batch, same_layer));

#include "readme/quickstart.inc"

    CHECK(plan.entries() == 2);
    for (index_t row = 0; row < rows; ++row) {
        const bool routed = task_of_row[row] != -1;
        const auto last = static_cast<std::size_t>(row * out + out - 1);
        // 1 + 0.5 (8 1) (2 0.5)
        CHECK(static_cast<float>(y_values[last]) == doctest::Approx(routed ? 5 : 1));
        CHECK(d_x(row, in - 1) == doctest::Approx(routed ? 6 : 0)); // 0.5 (12 0.5) (2 1)
    }
    for (const float d : d_modules_a.values())
        CHECK(d == doctest::Approx(5)); // of five rows 1 / 3 (0.5 (12 0.5) 1)
    for (const float d : d_modules_b.values())
        CHECK(d == doctest::Approx(20.0 / 3)); // of five rows 1 / 3 (0.5 8)
    for (index_t task = 0; task < tasks; ++task)
        for (index_t h = 0; h < heads; ++h) {
            const bool seen = task == 0 || task == 3;
            CHECK((d_logits(task, h, 0) < 0) == seen);
            CHECK(d_logits(task, h, 1) == doctest::Approx(0));
            CHECK((d_logits(task, h, 2) > 0) == seen);
        }
}
