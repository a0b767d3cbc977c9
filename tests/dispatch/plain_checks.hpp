#pragma once

#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/error.hpp>

#include "dispatch/kernels.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"

/// \file
/// What every compilation of dispatch/kernels.cpp has to do.

namespace mhr::test {

inline std::vector<long> tasks_of_rows(const batch_plan& plan) {
    std::vector<long> tasks(static_cast<std::size_t>(plan.rows()), no_task);
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        for (index_t i = 0; i < plan.rows_of(entry).extent(0); ++i)
            tasks[static_cast<std::size_t>(plan.rows_of(entry)(i))] = plan.tasks()(entry);
    return tasks;
}

/// The results are the oracle's, within the bound that holds for the library itself.
inline void check_against_oracle(const plain_kernels& kernels) {
    for (const routed_sizes& s : routed_shapes) {
        CAPTURE(s.rank);
        routed_problem<routed_of<float>> p(s);
        const auto tasks = tasks_of_rows(p.plan);
        const plain_layer layer{s.rows,
                                s.heads,
                                s.modules,
                                s.in(),
                                s.out(),
                                s.rank,
                                p.plan.entries(),
                                p.scale,
                                tasks.data(),
                                p.x.view().data(),
                                p.a.view().data(),
                                p.b.view().data(),
                                p.weights.view().data()};
        check_against_oracle(
            p, [&] { kernels.forward(layer, p.y.view().data()); },
            [&] {
                kernels.backward(layer, p.y.view().data(),
                                 {p.d_x.view().data(), p.d_a.view().data(), p.d_b.view().data(),
                                  p.d_weights.view().data()});
            });
    }
}

/// What it throws is caught here, though it may have been compiled for another instruction set.
inline void check_errors(const plain_kernels& kernels) {
    CHECK_THROWS_WITH_AS(kernels.fail(),
                         "batch_plan::assign_rows: task_of_row: expected ids of 0 and more, or -1 "
                         "for no task, got -7 at position 0",
                         error);
}

} // namespace mhr::test
