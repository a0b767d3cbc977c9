#pragma once

#include "plot.hpp"
#include "results.hpp"

#include <string>

namespace cross_task {

/// Heat maps of the routing weights, one for each layer: a row for each language, a column for each
/// module of each head. Throws `std::runtime_error` if there are too few or too many weights or one
/// is no number.
plot plot_routing(const routing_map& of, const std::string& name);

} // namespace cross_task
