#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "costs.hpp"
#include "measure.hpp"

namespace mhr_bench {

/// One number of the summary, with its target.
struct summary_entry {
    std::string key;
    double value;
    /// What it would be if all of ours took the roofline's time: no kernel can do better here.
    std::optional<double> at_roofline;
    std::optional<double> target;
    bool at_least; ///< the target is a lower bound, else an upper one
    std::string meaning;
    /// The same over the cells of one type and number of threads alone, where there are several.
    std::vector<std::pair<std::string, double>> parts;
    /// Where the target is missed: the worst cells, and what bounds them.
    std::vector<std::string> shortfalls;

    bool met() const { return !target || (at_least ? value >= *target : value <= *target); }
};

/// All numbers for which the passes and costs suffice.
std::vector<summary_entry> summarise(const std::vector<measured_pass>& passes,
                                     const std::vector<measured_cost>& costs);

} // namespace mhr_bench
