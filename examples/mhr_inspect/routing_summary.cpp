#include "routing_summary.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/training/routing_statistics.hpp>

namespace {

/// Weights that are kept at a time, so that no file makes the program take much memory.
constexpr mhr::index_t most_weights = 1 << 20;

/// 2^entropy of the weights of each task and head, as Poly's router gives them: the mean.
double mean_mixed_modules(const mhr::const_tensor_ref<3>& logits) {
    const mhr::index_t tasks = logits.extent(0);
    const mhr::index_t heads = logits.extent(1);
    const mhr::index_t modules = logits.extent(2);
    if (modules > most_weights / heads) return std::numeric_limits<double>::quiet_NaN();

    const mhr::element_type sums = mhr::sums_of(logits.type(), mhr::element_type::f32);
    std::vector<double> memory(static_cast<std::size_t>(heads * modules));
    std::vector<double> entropies(static_cast<std::size_t>(heads));
    const mhr::tensor_ref<3> weights(memory.data(), sums, {1, heads, modules});
    double sum = 0;
    for (std::int64_t task = 0; task < tasks; ++task) {
        mhr::router_forward(mhr::serial_executor{}, logits,
                            mhr::tensor_view<const std::int64_t, 1>(&task, {1}),
                            mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
        mhr::routing_entropy(weights, {entropies.data(), {1, heads}});
        for (const double entropy : entropies)
            sum += std::exp2(entropy);
    }
    return sum / static_cast<double>(tasks * heads);
}

routing_summary summary_of(const mhr::const_tensor_ref<3>& logits) {
    const auto statistics = mhr::routing_statistics_of(logits);
    const double mixed =
        std::isnan(statistics.discreteness) ? statistics.discreteness : mean_mixed_modules(logits);
    return {statistics.active_share, statistics.discreteness, statistics.efficiency, mixed};
}

} // namespace

routing_summary summarise_routing(const mhr::poly_checkpoint& adapter,
                                  const mhr::poly_checkpoint::layer& layer) {
    if (adapter.is_aligned(layer)) return summary_of(adapter.logits(layer));
    const std::array<mhr::index_t, 3> extents{adapter.config().tasks(), layer.shape.heads,
                                              layer.shape.modules};
    // Memory of double is aligned for every type.
    std::vector<double> memory(static_cast<std::size_t>(extents[0] * extents[1] * extents[2]));
    const mhr::tensor_ref<3> copy(memory.data(), layer.logits_type, extents);
    adapter.read_logits(layer, copy);
    return summary_of(copy);
}
