#pragma once

#include <string>
#include <utility>
#include <vector>

#include "peer.hpp"
#include "timing.hpp"

// A case, in one storage type and with one number of threads: all competitors on the same arrays.

namespace mhr_bench {

/// What a competitor took, the roofline's parts among them.
struct measured_peer {
    std::string name;
    library::role plays;
    double seconds;
};

/// One pass of ours, and what to compare it with.
struct measured_pass {
    layer_case sizes;
    pass which;
    std::string type;
    int threads;
    timing ours;
    /// Ours without threads, in the same rounds (0 where not measured).
    double seconds_of_one_thread;
    /// The two parts of the roofline: the pass takes no less than the larger one.
    double arithmetic_seconds, memory_seconds;
    double multiply_adds_per_second;
    /// What other programs left: the processor time over the time of a loop in one thread, times
    /// the peak rate of all threads over that of one and over their number.
    double share_of_processor;
    std::vector<measured_peer> peers;

    bool disturbed() const { return share_of_processor < 0.85; }

    double roofline_seconds() const { return std::max(arithmetic_seconds, memory_seconds); }
    double roofline_fraction() const { return roofline_seconds() / ours.seconds; }
};

/// What to measure. Only `verify`: each pass runs, nothing is timed.
struct plan_of_measurement {
    std::vector<library> libraries;
    budget limits;
    bool only_verify = false;
};

/// Verifies, then times. Throws if a result is wrong.
template <class T>
std::vector<measured_pass> measure(const layer_case& sizes, int threads,
                                   const plan_of_measurement& plan);

extern template std::vector<measured_pass> measure<float>(const layer_case&, int,
                                                          const plan_of_measurement&);
extern template std::vector<measured_pass> measure<bfloat16>(const layer_case&, int,
                                                             const plan_of_measurement&);

} // namespace mhr_bench
