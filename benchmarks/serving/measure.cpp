#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>

namespace mhr_bench {

namespace {

constexpr index_t routed_rank = 16, routed_heads = 8, routed_modules = 8;

double largest_difference(const aligned_array<float>& a, const aligned_array<float>& b) {
    double largest = 0, difference = 0;
    for (index_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(static_cast<double>(a.data()[i]) - b.data()[i]);
        // A NaN ends up in `difference`, and stays there.
        if (!(d <= difference) && !std::isnan(difference)) difference = d;
        largest = std::max(largest, std::abs(static_cast<double>(a.data()[i])));
    }
    return difference / largest;
}

aligned_array<float> result_of(decoder& model, const way& of) {
    of.run();
    aligned_array<float> copy(model.result().size());
    std::copy(model.result().begin(), model.result().end(), copy.begin());
    return copy;
}

/// All ways round sums in orders of their own, and each layer carries that on to the next.
void verify(decoder& model, const std::string& what, const way& base,
            const std::vector<way>& ways) {
    constexpr double tolerance = 2e-3, least_effect = 2e-2;
    const auto expected = result_of(model, ways.front());
    const auto fail = [&](const std::string& who, double difference) {
        throw std::runtime_error(what + ": " + who + " (" + std::to_string(difference) +
                                 " of the largest result)");
    };
    const double effect = largest_difference(expected, result_of(model, base));
    if (!(effect >= least_effect)) fail("the adapters change nothing", effect);
    for (std::size_t i = 1; i < ways.size(); ++i) {
        const double difference = largest_difference(expected, result_of(model, ways[i]));
        if (!(difference <= tolerance)) fail(ways[i].name + " differs from mhr", difference);
    }
}

timing median_of(const std::vector<double>& seconds) {
    const double median = quantile(seconds, .5);
    return {median, (quantile(seconds, .75) - quantile(seconds, .25)) / median};
}

/// What a bound takes: the least of several runs.
template <class F>
double best_of_some(F&& run) {
    double best = seconds_of(run);
    for (int i = 0; i < 10; ++i)
        best = std::min(best, seconds_of(run));
    return best;
}

/// Rounds in which the base alone and all ways take turns, in an order drawn anew; short ones take
/// several turns while the longest takes one.
void time_steps(const decoder& model, const way& base, const std::vector<way>& ways,
                const budget& limits, measured_serving& result) {
    std::vector<const way*> all{&base};
    for (const way& of : ways)
        all.push_back(&of);
    std::vector<double> once;
    for (const way* of : all)
        once.push_back(seconds_of(of->run));
    const double longest = *std::max_element(once.begin(), once.end());
    std::vector<std::size_t> turns;
    double round = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const auto count = static_cast<std::size_t>(std::clamp(longest / once[i], 1.0, 6.0));
        turns.insert(turns.end(), count, i);
        round += static_cast<double>(count) * once[i];
    }
    const int rounds = std::clamp(static_cast<int>(limits.seconds / round), limits.least_rounds,
                                  limits.most_rounds);
    std::vector<std::vector<double>> whole(all.size()), parts(all.size()), overheads(all.size());
    std::mt19937 engine(1);
    for (int r = 0; r < rounds; ++r) {
        std::shuffle(turns.begin(), turns.end(), engine);
        for (const std::size_t i : turns) {
            const double before = model.seconds_of_adapters();
            const double seconds = seconds_of(all[i]->run);
            const double part = model.seconds_of_adapters() - before;
            whole[i].push_back(seconds);
            parts[i].push_back(part);
            overheads[i].push_back(part / (seconds - part));
        }
    }
    result.base = median_of(whole[0]);
    for (std::size_t i = 1; i < all.size(); ++i)
        result.ways.push_back({all[i]->name, median_of(whole[i]), quantile(parts[i], .5),
                               quantile(overheads[i], .5)});
}

template <class Adapters>
measured_serving measure(decoder& model, const kind_of_adapters& kind, const Adapters& adapters,
                         requests batch, const budget& limits, bool only_verify) {
    measured_serving result{kind.name, batch.rows, batch.distinct, {}, {}, 0, 0};
    const way base = base_only(model);
    std::vector<way> ways = ways_of_mhr(model, adapters, batch);
    for (way& other : ways_of_libtorch(model, adapters, batch))
        ways.push_back(std::move(other));
    verify(model, kind.name + ", " + std::to_string(batch.distinct) + " adapters", base, ways);
    if (only_verify) return result;

    constexpr index_t rounds = 2000;
    const least_work least = adapters.work(batch.distinct, batch.rows);
    time_steps(model, base, ways, limits, result);
    const auto stream_all = [&] {
        for (const stretch_of_memory& array : least.arrays)
            stream({array}, model.threads());
    };
    result.memory_seconds = best_of_some(stream_all);
    const double rate = static_cast<double>(multiply_adds_of_round * rounds * model.threads()) /
                        best_of_some([&] { multiply_add(rounds, model.threads()); });
    result.arithmetic_seconds = least.multiply_adds / rate;
    return result;
}

} // namespace

const measured_way* measured_serving::find(const std::string& name) const {
    for (const measured_way& of : ways)
        if (of.name == name) return &of;
    return nullptr;
}

std::vector<kind_of_adapters> kinds_of_adapters() {
    using mhr::element_type;
    return {{"plain-16-bf16", "plain, rank 16, bf16", {16}, element_type::bf16},
            {"plain-mixed", "plain, ranks 8, 16 and 64, f32", {8, 16, 64}, element_type::f32},
            {"routed", "MHR, 8 modules of rank 16, 8 heads, f32", {}, element_type::f32}};
}

std::vector<measured_serving> measure_serving(decoder& model, const kind_of_adapters& kind,
                                              const std::vector<index_t>& distinct,
                                              const budget& limits, bool only_verify) {
    const index_t most = *std::max_element(distinct.begin(), distinct.end());
    std::vector<measured_serving> result;
    const auto each = [&](const auto& adapters) {
        for (const index_t count : distinct)
            result.push_back(
                measure(model, kind, adapters, {model.rows(), count}, limits, only_verify));
    };
    if (kind.ranks.empty())
        each(routed_adapters(model, most, routed_rank, routed_heads, routed_modules));
    else
        each(plain_adapters(model, most, kind.ranks, kind.type));
    return result;
}

} // namespace mhr_bench
