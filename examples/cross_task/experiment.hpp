#pragma once

#include "experiment_options.hpp"
#include "results.hpp"
#include "words.hpp"

#include <functional>
#include <string>

namespace cross_task {

/// A phase of the run begins, of so many steps; returns what to call after each of them.
using phase_callback = std::function<std::function<void()>(const std::string& title, int steps)>;

/// Runs the whole experiment: pre-trains hosts, trains all adapters on the training languages (and
/// some of them further, for zero-shot), chooses rates and steps on the development languages (on
/// the same grid for every method, with the first seed), adapts to the test languages. The numbers
/// depend on the options and seeds, not on the number of threads.
results run_experiment(const corpus& words, const experiment_options& options,
                       const phase_callback& begin_phase);

} // namespace cross_task
