#pragma once

#include <utility>

#include <mhr/batch/batch.hpp>
#include <mhr/ia3/routed_ia3.hpp>

#include "support/batches.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"

/// \file
/// Routed (IA)3 on one batch with all its tensors.

namespace mhr::test {

struct ia3_sizes {
    index_t rows, tasks, heads, modules, block;

    [[nodiscard]] index_t features() const { return heads * block; }
};

/// A layer with random numbers; a fifth of the weights is 0.
struct ia3_problem {
    ia3_sizes s;
    layer_types types;
    batch_plan plan;
    guarded_tensor<2> x, y, d_y;
    guarded_tensor<3> inventory, weights;
    guarded_tensor<2> scales; // the state
    guarded_tensor<2> d_x;
    guarded_tensor<3> d_inventory, d_weights;
    poisoned_memory scratch_memory;

    explicit ia3_problem(const ia3_sizes& sizes, const layer_types& of = {})
        : s(sizes), types(of), plan(random_plan(s.rows, s.tasks)),
          x(of.rows, {s.rows, s.features()}), y(of.rows, x.extents()), d_y(of.rows, x.extents()),
          inventory(of.modules, {s.heads, s.modules, s.block}),
          weights(of.weights, {plan.entries(), s.heads, s.modules}),
          scales(of.sums, {plan.entries(), s.features()}), d_x(of.gradients, x.extents()),
          d_inventory(of.gradients, inventory.extents()),
          d_weights(of.gradients, weights.extents()),
          scratch_memory(routed_ia3_backward_workspace_size({plan}, layer(), of.sums)) {
        x.fill(random_source(1));
        inventory.fill(random_source(2));
        weights.fill(random_source(3), 0, 1);
        y.fill(random_source(4));
        d_y.fill(random_source(5));
        d_x.fill(random_source(6));
        d_inventory.fill(random_source(7));
        d_weights.fill(random_source(8));
        random_source random(9);
        transform_elements(weights.ref(),
                           [&](double value) { return random.integer(5) == 0 ? 0 : value; });
    }

    [[nodiscard]] routed_ia3 layer() const { return {inventory, weights}; }

    void forward() { routed_ia3_forward({plan}, layer(), x, y, {scales}); }
    void backward() {
        routed_ia3_backward({plan}, layer(), x, d_y, {scales}, {d_x, d_inventory, d_weights},
                            scratch_memory);
    }
};

} // namespace mhr::test
