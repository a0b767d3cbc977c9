#pragma once

#include "results.hpp"

namespace cross_task {

/// Puts languages that are routed alike next to each other: the order of a clustering by the cosine
/// of their weights.
void order_by_similarity(routing_map& map);

} // namespace cross_task
