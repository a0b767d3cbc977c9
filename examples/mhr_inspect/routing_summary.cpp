#include "routing_summary.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <Eigen/Core>

#include <mhr/analysis/routing_statistics.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/routing/router.hpp>

namespace {

/// Weights that are kept at a time, so that no file makes the program take much memory.
constexpr mhr::index_t most_weights = 1 << 20;

/// 2^entropy of the weights of each task and head, as Poly's router gives them: the mean.
template <class T>
double mean_mixed_modules(mhr::tensor_view<const T, 3> logits) {
    using weight = mhr::accumulator_t<T>;
    const mhr::index_t tasks = logits.extent(0);
    const mhr::index_t heads = logits.extent(1);
    const mhr::index_t modules = logits.extent(2);
    if (modules > most_weights / heads) return std::numeric_limits<double>::quiet_NaN();

    std::vector<weight> memory(static_cast<std::size_t>(heads * modules));
    std::vector<double> entropies(static_cast<std::size_t>(heads));
    const mhr::tensor_view<weight, 3> weights(memory.data(), {1, heads, modules});
    double sum = 0;
    for (std::int64_t task = 0; task < tasks; ++task) {
        mhr::router_forward(mhr::serial_executor{}, logits,
                            mhr::tensor_view<const std::int64_t, 1>(&task, {1}),
                            mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
        mhr::routing_entropy(weights, mhr::tensor_view<double, 2>(entropies.data(), {1, heads}));
        for (const double entropy : entropies)
            sum += std::exp2(entropy);
    }
    return sum / static_cast<double>(tasks * heads);
}

template <class T>
routing_summary summary_of(mhr::tensor_view<const T, 3> logits) {
    const auto statistics = mhr::routing_statistics_of(logits);
    const double mixed =
        std::isnan(statistics.discreteness) ? statistics.discreteness : mean_mixed_modules(logits);
    return {statistics.active_share, statistics.discreteness, statistics.efficiency, mixed};
}

/// Of the logits where they are in the file, or of a copy if they are not aligned there.
template <class T>
routing_summary summary_of(const mhr::poly_checkpoint& adapter,
                           const mhr::poly_checkpoint::layer& layer) {
    mhr::tensor_view<const T, 3> logits;
    std::vector<T> copy;
    try {
        logits = adapter.logits<T>(layer);
    } catch (const mhr::error&) {
        const std::array<mhr::index_t, 3> extents{adapter.config().tasks(), layer.shape.heads,
                                                  layer.shape.modules};
        copy.resize(static_cast<std::size_t>(extents[0] * extents[1] * extents[2]));
        adapter.read_logits(layer, mhr::tensor_view<T, 3>(copy.data(), extents));
        logits = {copy.data(), extents};
    }
    return summary_of(logits);
}

} // namespace

routing_summary summarise_routing(const mhr::poly_checkpoint& adapter,
                                  const mhr::poly_checkpoint::layer& layer) {
    switch (layer.logits_type) {
    case mhr::dtype::f64:
        return summary_of<double>(adapter, layer);
    case mhr::dtype::f32:
        return summary_of<float>(adapter, layer);
    case mhr::dtype::f16:
        return summary_of<Eigen::half>(adapter, layer);
    case mhr::dtype::bf16:
        return summary_of<Eigen::bfloat16>(adapter, layer);
    default:
        throw std::logic_error("poly_checkpoint lets no other type pass");
    }
}
