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
    const std::int32_t task_of_row[rows] = {3, 3, 0, -1, 0, 3};
    const mhr::serial_executor executor;
    constexpr std::size_t a_size = modules * in * rank, b_size = modules * rank * out;
    std::vector<float> a_values(a_size), b_values(b_size, 0.5F), z_values(tasks * heads * modules);
    std::vector<float> d_a(a_size), d_b(b_size);
    float* const a = a_values.data();
    float* const b = b_values.data();
    float* const z = z_values.data();
    // Module m has a = m: of logits that are all 0, the mixture is 1.
    for (std::size_t i = 0; i < a_size; ++i)
        a[i] = static_cast<float>(i / (in / heads * rank) % modules);

    // Two distinct tasks, which the plan of the snippet will find.
    tensor<float, 3> weights_of_batch{{2, heads, modules}}, d_weights_of_batch{{2, heads, modules}};
    tensor<float, 3> d_z{{tasks, heads, modules}};
    tensor<float, 2> x_of_batch{{rows, in}}, y_of_batch{{rows, out}};
    tensor<float, 2> d_x_of_batch{{rows, in}}, d_y_of_batch{{rows, out}};
    const auto weights = weights_of_batch.view();
    const auto d_weights = d_weights_of_batch.view();
    const auto d_logits = d_z.view();
    const auto x = x_of_batch.view();
    const auto y = y_of_batch.view();
    const auto d_x = d_x_of_batch.view();
    const auto d_y = d_y_of_batch.view();
    for (index_t row = 0; row < rows; ++row) {
        for (index_t i = 0; i < in; ++i)
            x(row, i) = 1;
        for (index_t o = 0; o < out; ++o)
            y(row, o) = d_y(row, o) = 1;
    }
    const mhr::lora_inventory<float> d_inventory{{d_a.data(), {heads, modules, in / heads, rank}},
                                                 {d_b.data(), {heads, modules, rank, out / heads}}};

    // What the snippet leaves to the host: memory.
    mhr::batch_plan same_plan;
    same_plan.assign_rows(mhr::tensor_view<const std::int32_t, 1>(task_of_row, {rows}));
    const mhr::lora_shape shape{heads, modules, in, out, rank};
    mhr::owned_workspace state_memory(mhr::routed_lora_state_size<float>(same_plan, shape));
    mhr::workspace state_workspace = state_memory;
    const auto state = mhr::take_routed_lora_state<float>(state_workspace, same_plan, shape);
    mhr::owned_workspace workspace(
        mhr::routed_lora_backward_workspace_size<float>(same_plan, shape));

#include "readme/quickstart.inc"

    CHECK(plan.entries() == 2);
    for (index_t row = 0; row < rows; ++row) {
        const bool routed = task_of_row[row] != -1;
        CHECK(y(row, out - 1) == doctest::Approx(routed ? 5 : 1));  // 1 + 0.5 (8 1) (2 0.5)
        CHECK(d_x(row, in - 1) == doctest::Approx(routed ? 6 : 0)); // 0.5 (12 0.5) (2 1)
    }
    for (const float d : d_a)
        CHECK(d == doctest::Approx(5)); // of five rows 1 / 3 (0.5 (12 0.5) 1)
    for (const float d : d_b)
        CHECK(d == doctest::Approx(20.0 / 3)); // of five rows 1 / 3 (0.5 8)
    for (index_t task = 0; task < tasks; ++task)
        for (index_t h = 0; h < heads; ++h) {
            const bool seen = task == 0 || task == 3;
            CHECK((d_logits(task, h, 0) < 0) == seen);
            CHECK(d_logits(task, h, 1) == doctest::Approx(0));
            CHECK((d_logits(task, h, 2) > 0) == seen);
        }
}
