#pragma once

#include <mhr/io/peft/poly_checkpoint.hpp>

/// How the tasks of one layer route; each is NaN where the logits are not numbers.
struct routing_summary {
    double active_share = 0;  ///< share of the gates that are more open than shut
    double discreteness = 0;  ///< mean entropy of a gate in bits: 1 undecided, 0 discrete
    double efficiency = 0;    ///< 1: all modules are used alike
    double mixed_modules = 0; ///< mean over tasks and heads of how many modules are really mixed
};

routing_summary summarise_routing(const mhr::poly_checkpoint& adapter,
                                  const mhr::poly_checkpoint::layer& layer);
