#pragma once

#include "host_model.hpp"
#include "results.hpp"
#include "words.hpp"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cross_task {

/// What a size of the experiment comes to.
struct experiment_options {
    std::string size;
    std::vector<std::uint64_t> seeds;
    unsigned threads = 2;

    std::size_t evaluation_words = 1000; ///< of each language
    std::vector<int> word_counts;        ///< few-shot: words to adapt with, ascending
    std::size_t most_development_languages = 100;
    std::size_t most_test_languages = 100;

    pretraining_options pretraining;

    int multi_task_steps = 1000;
    Eigen::Index rows_of_task = 32;       ///< positions of each task in a multi-task step
    std::vector<double> multi_task_rates; ///< the grid, of modules; logits learn ten times as fast

    Eigen::Index few_shot_rows = 64;    ///< positions in a few-shot step
    std::vector<double> few_shot_rates; ///< of modules; logits learn a hundred times as fast
    std::vector<int> few_shot_steps;
};

/// The three sizes: `--quick`, the default and `--full`, with seeds from `first_seed` on.
experiment_options quick_options(std::uint64_t first_seed);
experiment_options default_options(std::uint64_t first_seed);
experiment_options full_options(std::uint64_t first_seed);

/// A phase of the run begins, of so many steps; returns what to call after each of them.
using phase_callback = std::function<std::function<void()>(const std::string& title, int steps)>;

/// Runs the whole experiment: pre-trains hosts, trains all adapters on the training languages,
/// chooses rates and steps on the development languages (on the same grid for every method, with
/// the first seed), adapts to the test languages. The numbers depend on the options and seeds, not
/// on the number of threads.
results run_experiment(const corpus& words, const experiment_options& options,
                       const phase_callback& begin_phase);

} // namespace cross_task
