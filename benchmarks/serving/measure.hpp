#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../compare/timing.hpp"
#include "ways.hpp"

namespace mhr_bench {

/// What the requests ask for.
struct kind_of_adapters {
    std::string name;
    std::string what;
    std::vector<index_t> ranks; ///< of plain adapters, in turn; none: routed ones
    mhr::element_type type;
};

/// Plain and routed adapters. (A choice for each row, as Arrow makes it, belongs here, too.)
std::vector<kind_of_adapters> kinds_of_adapters();

/// Seconds of a step, and what of them the adapters take, measured inside of it: the difference of
/// two long times would drown in what the machine does from one to the next.
struct measured_way {
    std::string name;
    timing whole;
    double adapters_part;
    double overhead; ///< the adapters' part over the rest of the same step
};

/// The ways of one batch: so many rows with so many distinct adapters.
struct measured_serving {
    std::string kind;
    index_t rows, distinct;
    timing base;
    std::vector<measured_way> ways;
    /// The least that the adapters' part takes: its multiply-adds at the peak rate, and a stream
    /// over its distinct bytes.
    double arithmetic_seconds, memory_seconds;

    const measured_way* find(const std::string& way) const;
    double bound() const { return std::max(arithmetic_seconds, memory_seconds); }
};

/// Compares the results of all ways, then (unless `only_verify`) times them in turn. Throws if a
/// result is wrong.
std::vector<measured_serving> measure_serving(decoder& model, const kind_of_adapters& kind,
                                              const std::vector<index_t>& distinct,
                                              const budget& limits, bool only_verify);

} // namespace mhr_bench
