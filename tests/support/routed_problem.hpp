#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/workspace.hpp>

#include "support/batches.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_oracle.hpp"
#include "support/tensor.hpp"

/// \file
/// One call of routed LoRA with all its buffers, for the tests of adapters/routed_lora.hpp.

namespace mhr::test {

/// What is stored how: x, inventory, weights, y (and d_y), and the gradients of the first three.
template <class X_, class M_, class W_, class Y_, class DX_ = X_, class DM_ = M_, class DW_ = W_>
struct routed_storage {
    using X = X_;
    using M = M_;
    using W = W_;
    using Y = Y_;
    using DX = DX_;
    using DM = DM_;
    using DW = DW_;
    using A = accumulator_t<X, M, W>;      // of the forward
    using Sum = accumulator_t<X, M, W, Y>; // of the backward
    using S = oracle_t<X, M, W, Y, DX, DM, DW>;
};

struct routed_sizes {
    index_t rows, tasks, heads, modules, in_block, out_block, rank;

    [[nodiscard]] index_t in() const { return heads * in_block; }
    [[nodiscard]] index_t out() const { return heads * out_block; }
};

template <class T>
struct routed_problem {
    routed_sizes s;
    batch_plan plan;
    double scale = -0.75;
    guarded_buffer<typename T::X, 2> x;
    guarded_buffer<typename T::M, 4> a, b;
    guarded_buffer<typename T::W, 3> weights;
    guarded_buffer<typename T::Y, 2> y; // also d_y
    guarded_buffer<typename T::DX, 2> d_x;
    guarded_buffer<typename T::DM, 4> d_a, d_b;
    guarded_buffer<typename T::DW, 3> d_weights;
    // Exactly what is asked for, full of NaN.
    std::vector<std::byte> state_memory, scratch_memory;

    explicit routed_problem(const routed_sizes& sizes, layout of_rows = layout::row_major,
                            layout of_inventory = layout::row_major,
                            layout of_gradients = layout::row_major)
        : routed_problem(sizes, random_plan(sizes.rows, sizes.tasks), of_rows, of_inventory,
                         of_gradients) {}

    routed_problem(const routed_sizes& sizes, batch_plan plan_, layout of_rows = layout::row_major,
                   layout of_inventory = layout::row_major, layout of_gradients = layout::row_major)
        : s(sizes), plan(std::move(plan_)), x({s.rows, s.in()}, of_rows),
          a({s.heads, s.modules, s.in_block, s.rank}, of_inventory),
          b({s.heads, s.modules, s.rank, s.out_block}, of_inventory),
          weights({plan.entries(), s.heads, s.modules}, of_inventory),
          y({s.rows, s.out()}, of_rows), d_x({s.rows, s.in()}, of_gradients),
          d_a({s.heads, s.modules, s.in_block, s.rank}, of_gradients),
          d_b({s.heads, s.modules, s.rank, s.out_block}, of_gradients),
          d_weights({plan.entries(), s.heads, s.modules}, of_gradients),
          state_memory(routed_lora_state_size<typename T::A>(plan, shape()), std::byte{0xff}),
          scratch_memory(routed_lora_backward_workspace_size<typename T::Sum>(plan, shape()),
                         std::byte{0xff}) {
        // Each from its own seed: an inventory does not depend on the batch.
        random_source(1).fill(x.view());
        random_source(2).fill(a.view());
        random_source(3).fill(b.view());
        random_source(4).fill(weights.view(), 0, 1);
        random_source(5).fill(y.view());
        random_source(6).fill(d_x.view());
        random_source(7).fill(d_a.view());
        random_source(8).fill(d_b.view());
        random_source(9).fill(d_weights.view());
        random_source random(10);
        for_each_position(weights.view().extents(), [&](const position<3>& at) {
            if (random.integer(5) == 0) element(weights.view(), at) = typename T::W(0.F);
        });
    }

    [[nodiscard]] lora_shape shape() const { return {s.heads, s.modules, s.in(), s.out(), s.rank}; }
    lora_inventory<typename T::M> inventory() { return {a.view(), b.view()}; }
    lora_inventory<typename T::DM> d_inventory() { return {d_a.view(), d_b.view()}; }
    workspace scratch() { return {scratch_memory.data(), scratch_memory.size()}; }

    /// The same memory every time.
    routed_lora_state<typename T::A> state() {
        workspace memory(state_memory.data(), state_memory.size());
        return take_routed_lora_state<typename T::A>(memory, plan, shape());
    }

    void forward(executor_ref executor = serial_executor{}) {
        routed_lora_forward(executor, plan, x.view(), inventory(), weights.view(), scale, y.view(),
                            state());
    }
    void backward(executor_ref executor = serial_executor{}) {
        routed_lora_backward(executor, plan, x.view(), inventory(), weights.view(), scale, state(),
                             y.view(), d_x.view(), d_inventory(), d_weights.view(), scratch());
    }
    /// The state of a forward, but not its y, which stays a random gradient.
    void prepare_backward() {
        const auto d_y = copy_as<typename T::Y>(y.view());
        forward();
        transform(d_y.view(), y.view(), [](const auto& value) { return value; });
    }
    /// Sets all gradients to 0.
    void forget_gradients() {
        d_x.fill(typename T::DX(0.F));
        d_a.fill(typename T::DM(0.F));
        d_b.fill(typename T::DM(0.F));
        d_weights.fill(typename T::DW(0.F));
    }
    [[nodiscard]] bool intact() const {
        return y.intact() && d_x.intact() && d_a.intact() && d_b.intact() && d_weights.intact();
    }
};

/// What the oracle makes of a problem: the sums, or their magnitudes.
template <class S>
struct routed_expectation {
    tensor<S, 2> y, d_x;
    tensor<S, 4> d_a, d_b;
    tensor<S, 3> d_weights;
};

template <class S, class T, class Convert>
routed_expectation<S> expect_with(routed_problem<T>& p, S scale, Convert&& convert) {
    const routed_oracle<S> oracle{entry_of_row(p.plan), scale,        convert(p.x),
                                  convert(p.a),         convert(p.b), convert(p.weights)};
    const auto d_y = convert(p.y);
    routed_expectation<S> e{d_y, convert(p.d_x), convert(p.d_a), convert(p.d_b),
                            convert(p.d_weights)};
    oracle.forward(e.y);
    oracle.backward(d_y, e.d_x, e.d_a, e.d_b, e.d_weights);
    return e;
}
template <class S, class T>
routed_expectation<S> expect(routed_problem<T>& p) {
    return expect_with<S>(p, static_cast<S>(p.scale),
                          [](auto& buffer) { return copy_as<S>(buffer.view()); });
}
template <class S, class T>
routed_expectation<S> expect_magnitudes(routed_problem<T>& p) {
    return expect_with<S>(p, std::abs(static_cast<S>(p.scale)),
                          [](auto& buffer) { return magnitudes_as<S>(buffer.view()); });
}

} // namespace mhr::test
