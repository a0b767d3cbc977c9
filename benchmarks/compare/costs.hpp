#pragma once

#include <string>
#include <vector>

#include "measure.hpp"

namespace mhr_bench {

/// A ratio of two times that were taken in turn, and what they were.
struct measured_cost {
    std::string key;
    double ratio;
    std::string text;
};

/// What structure costs (heads, tasks, rows of no task), what 16 bits save in mixing, and what the
/// adapter costs beside its layer: all in f32 and one thread unless said.
std::vector<measured_cost> measure_costs(const plan_of_measurement& plan);

} // namespace mhr_bench
