#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/workspace.hpp>

#include "support/batches.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// One call of LoRA with ready adapters and all its buffers, for the tests of adapters/lora.hpp and
/// adapters/lora_halves.hpp.

namespace mhr::test {

/// What is stored how: x, the adapters, y (and d_y), and the gradients of the first two.
template <class X_, class P_, class Y_, class DX_ = X_, class DP_ = P_>
struct lora_storage {
    using X = X_;
    using P = P_;
    using Y = Y_;
    using DX = DX_;
    using DP = DP_;
    using A = accumulator_t<X, P>;      // of the forward
    using Sum = accumulator_t<X, P, Y>; // of the backward
    using S = oracle_t<X, P, Y, DX, DP>;
};

struct lora_sizes {
    index_t rows, tasks, in, out, rank;
};

template <class T>
struct lora_problem {
    batch_plan plan;
    lora_sizes s;
    double scale = -0.75;
    guarded_buffer<typename T::X, 2> x;
    guarded_buffer<typename T::P, 3> a, b;
    guarded_buffer<typename T::Y, 2> y; // also d_y
    guarded_buffer<typename T::A, 2> hidden;
    guarded_buffer<typename T::DX, 2> d_x;
    guarded_buffer<typename T::DP, 3> d_a, d_b;
    std::vector<std::byte> memory;

    explicit lora_problem(const lora_sizes& sizes_, layout order = layout::row_major)
        : lora_problem(sizes_, random_plan(sizes_.rows, sizes_.tasks), order, order, order, order) {
    }

    lora_problem(const lora_sizes& sizes_, batch_plan plan_, layout of_rows, layout of_adapters,
                 layout of_hidden, layout of_gradients)
        : plan(std::move(plan_)), s(sizes_), x({s.rows, s.in}, of_rows),
          a({plan.entries(), s.in, s.rank}, of_adapters),
          b({plan.entries(), s.rank, s.out}, of_adapters), y({s.rows, s.out}, of_rows),
          hidden({s.rows, s.rank}, of_hidden), d_x({s.rows, s.in}, of_gradients),
          d_a({plan.entries(), s.in, s.rank}, of_gradients),
          d_b({plan.entries(), s.rank, s.out}, of_gradients),
          memory(lora_backward_workspace_size<typename T::Sum>(plan, s.in, s.out, s.rank),
                 std::byte{0xff}) {
        random_source random(3);
        random.fill(x.view());
        random.fill(a.view());
        random.fill(b.view());
        random.fill(y.view());
        random.fill(hidden.view());
        random.fill(d_x.view());
        random.fill(d_a.view());
        random.fill(d_b.view());
    }

    lora_batch<typename T::P> adapters() { return {a.view(), b.view()}; }
    lora_batch<typename T::DP> d_adapters() { return {d_a.view(), d_b.view()}; }
    workspace scratch() { return {memory.data(), memory.size()}; }

    void forward(executor_ref executor = serial_executor{}) {
        lora_forward(executor, plan, x.view(), adapters(), scale, y.view(), hidden.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        lora_backward(executor, plan, x.view(), adapters(), scale, hidden.view(), y.view(),
                      d_x.view(), d_adapters(), scratch());
    }
    /// The hidden of the forward, but not its y, which stays a random gradient.
    void prepare_backward() {
        const auto d_y = copy_as<typename T::Y>(y.view());
        forward();
        transform(d_y.view(), y.view(), [](const auto& value) { return value; });
    }
};

/// The adapters of a problem in a pool of more, in an order of their own.
template <class T>
struct pooled_adapters {
    guarded_buffer<typename T::P, 3> a, b;
    std::vector<index_t> slot_of_entry;

    pooled_adapters(lora_problem<T>& p, index_t spare, layout order)
        : a({p.plan.entries() + spare, p.s.in, p.s.rank}, order),
          b({p.plan.entries() + spare, p.s.rank, p.s.out}, order),
          slot_of_entry(random_source(5).permutation(p.plan.entries() + spare)) {
        slot_of_entry.resize(static_cast<std::size_t>(p.plan.entries()));
        for (index_t entry = 0; entry < p.plan.entries(); ++entry) {
            const index_t slot = slot_of_entry[static_cast<std::size_t>(entry)];
            const auto same = [](const auto& value) { return value; };
            transform(p.a.view().slice(0, entry), a.view().slice(0, slot), same);
            transform(p.b.view().slice(0, entry), b.view().slice(0, slot), same);
        }
    }
    tensor_view<const index_t, 1> slots() {
        return {slot_of_entry.data(), {static_cast<index_t>(slot_of_entry.size())}};
    }
    lora_batch<const typename T::P> batch() { return {a.view(), b.view(), slots()}; }
};

} // namespace mhr::test
