#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

// Competitors timed in turn, round by round, in an order drawn anew for each: what slows the
// machine down for a while slows all of them down.

namespace mhr_bench {

struct contender {
    std::function<void()> run;
    /// Contenders of one group are repeated equally often within a round.
    int group = 0;
};

/// The median of the rounds, and the distance of their quartiles over it.
struct timing {
    double seconds = 0;
    double spread = 0;
};

/// How long to measure. The number of rounds follows from the seconds, within bounds.
struct budget {
    double seconds;
    int least_rounds;
    int most_rounds;
};

template <class F>
double seconds_of(F&& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double quantile(std::vector<double> values, double share) {
    const auto at =
        static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1) + .5);
    std::nth_element(values.begin(), values.begin() + at, values.end());
    return values[static_cast<std::size_t>(at)];
}

/// A run shorter than this is repeated until it takes as long.
inline constexpr double least_seconds = 1e-3;

inline std::vector<timing> time_in_turn(const std::vector<contender>& contenders,
                                        const budget& limits) {
    const auto count = contenders.size();
    int groups = 0;
    for (const contender& c : contenders)
        groups = std::max(groups, c.group + 1);
    // What one run takes, the first one (memory, code) aside.
    std::vector<double> once(count);
    std::vector<double> fastest(static_cast<std::size_t>(groups), 1e9);
    for (std::size_t i = 0; i < count; ++i) {
        contenders[i].run();
        once[i] = seconds_of(contenders[i].run);
        if (once[i] < least_seconds) once[i] = std::min(once[i], seconds_of(contenders[i].run));
        double& least = fastest[static_cast<std::size_t>(contenders[i].group)];
        least = std::min(least, once[i]);
    }
    std::vector<int> repetitions;
    double round = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const double least = fastest[static_cast<std::size_t>(contenders[i].group)];
        repetitions.push_back(static_cast<int>(
            std::clamp(std::ceil(least_seconds / std::max(least, 1e-7)), 1.0, 1000.0)));
        round += repetitions.back() * once[i];
    }
    const int rounds = std::clamp(static_cast<int>(limits.seconds / round), limits.least_rounds,
                                  limits.most_rounds);

    std::vector<std::vector<double>> seconds(count);
    std::vector<std::size_t> order(count);
    for (std::size_t i = 0; i < count; ++i)
        order[i] = i;
    std::mt19937 engine(1);
    for (int r = 0; r < rounds; ++r) {
        std::shuffle(order.begin(), order.end(), engine);
        for (const std::size_t i : order)
            seconds[i].push_back(seconds_of([&] {
                                     for (int k = 0; k < repetitions[i]; ++k)
                                         contenders[i].run();
                                 }) /
                                 repetitions[i]);
    }
    std::vector<timing> result;
    for (const auto& of_contender : seconds) {
        const double median = quantile(of_contender, .5);
        result.push_back(
            {median, (quantile(of_contender, .75) - quantile(of_contender, .25)) / median});
    }
    return result;
}

} // namespace mhr_bench
