#pragma once

#include <string>

#include <mhr/training/routing_statistics.hpp>

#include "support/golden_case.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of the statistics of routers.

namespace mhr::test {

/// The mean over the routers of each coder. `T` is the type of the logits; sums are f64.
template <class T>
void check_statistics(const golden_case& c, outcome& result) {
    for (const std::string coder : {"encoder", "decoder"}) {
        const index_t routers = c.size("n_" + coder);
        if (routers == 0) continue;
        // How the columns divide into heads and modules must not matter.
        for (const bool one_head : {true, false}) {
            tensor<double, 1> share({1}), discreteness({1}), efficiency({1});
            for (index_t i = 0; i < routers; ++i) {
                const auto logits =
                    c.file.read<T, 2>(coder + "." + std::to_string(i) + ".module_logits");
                const auto table = logits.view().split(1, one_head ? 1 : logits.extents()[1]);
                const auto got = routing_statistics_of(table);
                share(0) += got.active_share / static_cast<double>(routers);
                discreteness(0) += got.discreteness / static_cast<double>(routers);
                efficiency(0) += got.efficiency / static_cast<double>(routers);
            }
            const auto compare = [&](const std::string& name, const tensor<double, 1>& got) {
                result.compare(coder + name, got.view(), c.file.read<double>(coder + name, {1}),
                               c.tolerance());
            };
            compare(".sparsity", share);
            compare(".discreteness", discreteness);
            compare(".efficiency", efficiency);
        }
    }
}

} // namespace mhr::test
