#pragma once

#include <cstdint>
#include <string>

#include <mhr/routing/annealing.hpp>

#include "support/golden_case.hpp"
#include "support/golden_rules.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of routers alone, and of the annealing schedule.

namespace mhr::test {

template <class T>
void check_routing(const golden_case& c, outcome& result) {
    const auto tasks = tasks_of(c);
    with_router<T>(c, [&](const golden_router<T>& router) {
        const index_t entries = tasks.extents()[0];
        const index_t modules = c.size("n_skills");
        const auto weights = c.file.read<T>("weights", {entries, router.heads, modules});
        tensor<T, 3> got(weights.extents());
        router.forward(tasks.view(), got.view());
        result.compare("weights", got.view(), weights, c.tolerance());

        if (!router.backward) return;
        const auto d_weights = c.file.read<T>("d_weights", {entries, router.heads, modules});
        check_router_gradient<T>(c, router, tasks.view(), d_weights.view(),
                                 outcome::largest(d_weights.view()), result);
    });
}

inline void check_anneal_schedule(const golden_case& c, outcome& result) {
    const index_t total = c.size("total_steps");
    const index_t annealed = c.size("uniform_interp_steps");
    const auto steps = c.file.read<std::int64_t, 1>("global_step");
    const index_t count = steps.extents()[0];
    const auto alpha = c.file.read<double>("alpha", {count});
    const auto active = c.file.read<std::uint8_t>("active", {count});
    tensor<double, 1> got(alpha.extents());
    for (index_t i = 0; i < count; ++i) {
        got(i) = annealing_at(steps(i), total, annealed);
        const bool is_active = steps(i) > 0 && steps(i) >= total - annealed;
        const std::string step = "step " + std::to_string(steps(i));
        result.require(active(i) == (is_active ? 1 : 0), step + ": active in another phase");
        result.require(is_active || is_exactly(got(i), 1), step + ": annealed, but not active");
        result.require(i == 0 || steps(i) > steps(i - 1), step + ": out of order");
    }
    result.compare("alpha", got.view(), alpha, c.tolerance());
}

} // namespace mhr::test
