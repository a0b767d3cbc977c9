#pragma once

#include "host_model.hpp"

#include <Eigen/Core>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cross_task {

/// The numbers that a size of the experiment comes to.
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

    int alignment_measures = 50;       ///< of each multi-task training
    Eigen::Index alignment_rows = 128; ///< positions of each task in a measure: fewer are noise

    int further_steps = 300; ///< after the multi-task training, for zero-shot
    std::vector<double> further_rates;

    Eigen::Index few_shot_rows = 64;    ///< positions in a few-shot step
    std::vector<double> few_shot_rates; ///< of modules; logits learn a hundred times as fast
    std::vector<int> few_shot_steps;
};

/// The three sizes: `--quick`, the default and `--full`, with seeds from `first_seed` on.
experiment_options quick_options(std::uint64_t first_seed);
experiment_options default_options(std::uint64_t first_seed);
experiment_options full_options(std::uint64_t first_seed);

} // namespace cross_task
