#include "experiment_options.hpp"

namespace cross_task {

experiment_options quick_options(std::uint64_t first_seed) {
    experiment_options options;
    options.size = "quick";
    options.seeds = {first_seed};
    options.evaluation_words = 60;
    options.word_counts = {32};
    options.most_development_languages = 2;
    options.most_test_languages = 2;
    options.pretraining.steps = 60;
    options.pretraining.rows = 512;
    options.multi_task_steps = 30;
    options.rows_of_task = 16;
    options.multi_task_rates = {1e-2};
    options.alignment_measures = 5;
    options.alignment_rows = 32;
    options.further_steps = 10;
    options.further_rates = {3e-3};
    options.few_shot_rates = {1e-3, 3e-3};
    options.few_shot_steps = {20};
    return options;
}

experiment_options default_options(std::uint64_t first_seed) {
    experiment_options options;
    options.size = "default";
    options.seeds = {first_seed, first_seed + 1, first_seed + 2};
    options.evaluation_words = 200;
    options.word_counts = {32, 128};
    options.most_development_languages = 3;
    options.pretraining.steps = 800;
    options.multi_task_steps = 400;
    options.rows_of_task = 24;
    options.multi_task_rates = {1e-2};
    options.alignment_measures = 25;
    options.alignment_rows = 64;
    options.further_steps = 120;
    options.further_rates = {3e-3};
    options.few_shot_rates = {1e-3, 3e-3, 1e-2};
    options.few_shot_steps = {100, 200};
    return options;
}

experiment_options full_options(std::uint64_t first_seed) {
    experiment_options options;
    options.size = "full";
    for (std::uint64_t s = 0; s < 5; ++s)
        options.seeds.push_back(first_seed + s);
    options.word_counts = {32, 128, 512};
    options.multi_task_rates = {3e-3, 1e-2, 3e-2};
    options.further_rates = {1e-3, 3e-3, 1e-2};
    options.few_shot_rates = {1e-3, 3e-3, 1e-2};
    options.few_shot_steps = {100, 300, 1000};
    return options;
}

} // namespace cross_task
