#pragma once

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "support/batches.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// One routed layer on one batch with all its tensors, for the tests of what is made of layers.

namespace mhr::test {

struct layer_sizes {
    index_t rows, tasks, heads, modules, in_block, out_block, rank;

    [[nodiscard]] index_t in() const { return heads * in_block; }
    [[nodiscard]] index_t out() const { return heads * out_block; }
    [[nodiscard]] lora_shape shape() const { return {heads, modules, in(), out(), rank}; }
};

/// The element types of x and y, of the inventory, of weights, of all gradients, and of sums.
struct layer_types {
    element_type rows = element_type::f32;
    element_type modules = element_type::f32;
    element_type weights = element_type::f32;
    element_type gradients = element_type::f32;
    element_type sums = element_type::f32;
};

inline layer_types all_of(element_type type) {
    return {type, type, type, type, sums_of(type, type)};
}

/// Rows and modules in 16 bits; weights, gradients and sums in f32.
inline constexpr layer_types of_16_bits{element_type::f16, element_type::bf16, element_type::f32,
                                        element_type::f32, element_type::f32};

/// Memory for a state or a workspace, full of NaN, of exactly as many bytes as are asked for.
struct poisoned_memory {
    explicit poisoned_memory(std::size_t size) : bytes(size, std::byte{0xff}) {}
    operator workspace() { return {bytes.data(), bytes.size()}; } // NOLINT: implicit

    std::vector<std::byte> bytes;
};

/// A layer with random numbers; a fifth of the weights is 0.
struct layer_problem {
    layer_sizes s;
    layer_types types;
    batch_plan plan;
    double scale = -0.75;
    guarded_tensor<2> x, y, d_y;
    guarded_tensor<4> a, b;
    guarded_tensor<3> weights;
    guarded_tensor<2> d_x;
    guarded_tensor<4> d_a, d_b;
    guarded_tensor<3> d_weights;
    poisoned_memory state_memory, scratch_memory;

    explicit layer_problem(const layer_sizes& sizes, const layer_types& of = {},
                           layout of_rows = layout::row_major,
                           layout of_modules = layout::row_major)
        : layer_problem(sizes, random_plan(sizes.rows, sizes.tasks), of, of_rows, of_modules) {}

    layer_problem(const layer_sizes& sizes, batch_plan plan_, const layer_types& of = {},
                  layout of_rows = layout::row_major, layout of_modules = layout::row_major)
        : s(sizes), types(of), plan(std::move(plan_)), x(of.rows, {s.rows, s.in()}, of_rows),
          y(of.rows, {s.rows, s.out()}, of_rows), d_y(of.rows, {s.rows, s.out()}, of_rows),
          a(of.modules, {s.heads, s.modules, s.in_block, s.rank}, of_modules),
          b(of.modules, {s.heads, s.modules, s.rank, s.out_block}, of_modules),
          weights(of.weights, {plan.entries(), s.heads, s.modules}, of_modules),
          d_x(of.gradients, x.extents(), of_rows), d_a(of.gradients, a.extents(), of_modules),
          d_b(of.gradients, b.extents(), of_modules),
          d_weights(of.gradients, weights.extents(), of_modules),
          state_memory(routed_lora_state_size({plan}, layer(), of.sums)),
          scratch_memory(routed_lora_backward_workspace_size({plan}, layer(), of.sums)) {
        // Each has its own seed: an inventory does not depend on the batch.
        x.fill(random_source(1));
        a.fill(random_source(2));
        b.fill(random_source(3));
        weights.fill(random_source(4), 0, 1);
        y.fill(random_source(5));
        d_y.fill(random_source(6));
        d_x.fill(random_source(7));
        d_a.fill(random_source(8));
        d_b.fill(random_source(9));
        d_weights.fill(random_source(10));
        random_source random(11);
        transform_elements(weights.ref(),
                           [&](double value) { return random.integer(5) == 0 ? 0 : value; });
    }

    [[nodiscard]] routed_lora layer() const {
        return {a.const_ref(), b.const_ref(), weights.const_ref(), scale};
    }
    routed_lora_gradients gradients() { return {d_x.ref(), d_a.ref(), d_b.ref(), d_weights.ref()}; }

    /// Calls `f` with every tensor.
    template <class Function>
    void for_each_tensor(Function&& f) {
        f(x);
        f(a);
        f(b);
        f(weights);
        f(y);
        f(d_y);
        f(d_x);
        f(d_a);
        f(d_b);
        f(d_weights);
    }

    /// Small whole numbers everywhere: every sum is exact, and so is the same in any order.
    void make_whole() {
        scale = 2;
        for_each_tensor([](auto& tensor) {
            // + 0, so that no zero is negative.
            transform_elements(tensor.ref(),
                               [](double value) { return std::round(4 * value) + 0; });
        });
    }

    /// The absolute values everywhere: what is computed of them bounds what errors are.
    void make_magnitudes() {
        scale = std::abs(scale);
        for_each_tensor([](auto& tensor) {
            transform_elements(tensor.ref(), [](double value) { return std::abs(value); });
        });
    }

    /// The values of another problem, which are exact where these types are wider.
    void take_values_of(layer_problem& other) {
        scale = other.scale;
        const auto take = [](auto& to, const auto& from) {
            for_each_position(from.extents(), [&](const auto& at) {
                set_element(to.ref(), at, element(from.const_ref(), at));
            });
        };
        take(x, other.x);
        take(a, other.a);
        take(b, other.b);
        take(weights, other.weights);
        take(y, other.y);
        take(d_y, other.d_y);
        take(d_x, other.d_x);
        take(d_a, other.d_a);
        take(d_b, other.d_b);
        take(d_weights, other.d_weights);
    }

    /// Returns the same memory every time.
    [[nodiscard]] routed_lora_state state() {
        workspace memory = state_memory;
        return take_routed_lora_state(memory, {plan}, layer(), types.sums);
    }
    /// Adds to y.
    void forward(executor_ref executor = {}, rank_sum_ref sum = {}) {
        routed_lora_forward({plan, executor, sum}, layer(), x, y, state());
    }
    /// Adds to the gradients.
    void backward(executor_ref executor = {}, rank_sum_ref sum = {}) {
        routed_lora_backward({plan, executor, sum}, layer(), x, d_y, state(), gradients(),
                             scratch_memory);
    }
    void run(executor_ref executor = {}, rank_sum_ref sum = {}) {
        forward(executor, sum);
        backward(executor, sum);
    }

    [[nodiscard]] bool intact() const {
        return y.intact() && d_x.intact() && d_a.intact() && d_b.intact() && d_weights.intact();
    }
};

} // namespace mhr::test
