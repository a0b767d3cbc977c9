#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/routed_ia3.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/workspace.hpp>

#include "support/batches.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_problem.hpp"

/// \file
/// One call of routed (IA)3 with all its buffers, for the tests of adapters/routed_ia3.hpp.

namespace mhr::test {

/// What is stored how, as of routed LoRA: x, modules, weights, y, and the gradients of the first
/// three.
template <class... Stored>
using ia3_storage = routed_storage<Stored...>;

struct ia3_sizes {
    index_t rows, tasks, heads, modules, block;
    [[nodiscard]] index_t features() const { return heads * block; }
};

template <class T>
struct routed_ia3_problem {
    ia3_sizes s;
    batch_plan plan;
    guarded_buffer<typename T::X, 2> x;
    guarded_buffer<typename T::M, 3> modules;
    guarded_buffer<typename T::W, 3> weights;
    guarded_buffer<typename T::Y, 2> y, d_y;
    guarded_buffer<typename T::A, 2> state;
    guarded_buffer<typename T::DX, 2> d_x;
    guarded_buffer<typename T::DM, 3> d_modules;
    guarded_buffer<typename T::DW, 3> d_weights;
    std::vector<std::byte> memory; // exactly what is asked for, full of NaN

    explicit routed_ia3_problem(const ia3_sizes& sizes_, layout of_rows = layout::row_major,
                                layout of_modules = layout::row_major,
                                layout of_gradients = layout::row_major)
        : routed_ia3_problem(sizes_, random_plan(sizes_.rows, sizes_.tasks), of_rows, of_modules,
                             of_gradients) {}

    routed_ia3_problem(const ia3_sizes& sizes_, batch_plan plan_,
                       layout of_rows = layout::row_major, layout of_modules = layout::row_major,
                       layout of_gradients = layout::row_major)
        : s(sizes_), plan(std::move(plan_)), x({s.rows, s.features()}, of_rows),
          modules({s.heads, s.modules, s.block}, of_modules),
          weights({plan.entries(), s.heads, s.modules}, of_modules),
          y({s.rows, s.features()}, of_rows), d_y({s.rows, s.features()}, of_rows),
          state({plan.entries(), s.features()}, of_modules),
          d_x({s.rows, s.features()}, of_gradients),
          d_modules({s.heads, s.modules, s.block}, of_gradients),
          d_weights({plan.entries(), s.heads, s.modules}, of_gradients),
          memory(routed_ia3_backward_workspace_size<typename T::Sum>(plan, s.features()),
                 std::byte{0xff}) {
        random_source(1).fill(x.view());
        random_source(2).fill(modules.view());
        random_source(4).fill(weights.view(), 0, 1);
        random_source(5).fill(d_y.view());
        random_source(6).fill(d_x.view());
        random_source(7).fill(d_modules.view());
        random_source(9).fill(d_weights.view());
        random_source random(10);
        for_each_position(weights.view().extents(), [&](const position<3>& at) {
            if (random.integer(5) == 0) element(weights.view(), at) = typename T::W(0.F);
        });
    }

    workspace scratch() { return {memory.data(), memory.size()}; }
    void forward(executor_ref executor = serial_executor{}) {
        routed_ia3_forward(executor, plan, x.view(), modules.view(), weights.view(), y.view(),
                           state.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        routed_ia3_backward(executor, plan, x.view(), modules.view(), weights.view(), state.view(),
                            d_y.view(), d_x.view(), d_modules.view(), d_weights.view(), scratch());
    }
    void forget_gradients() {
        d_x.fill(typename T::DX(0.F));
        d_modules.fill(typename T::DM(0.F));
        d_weights.fill(typename T::DW(0.F));
    }
    [[nodiscard]] bool intact() const {
        return y.intact() && state.intact() && d_x.intact() && d_modules.intact() &&
               d_weights.intact();
    }
};

} // namespace mhr::test
