#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cross_task {

/// How well a language is predicted after adaptation to `words` of its words (0: zero-shot, without
/// any).
struct adaptation_result {
    std::string method;
    std::uint64_t seed = 0;
    int words = 0;
    std::string language;
    double bits_per_character = 0;
    std::int64_t trained_parameters = 0;
    double seconds = 0; ///< of training, processor time
};

/// How well a method fits a training language after multi-task training.
struct fit_result {
    std::string method;
    std::uint64_t seed = 0;
    std::string language;
    double bits_per_character = 0;
};

/// Rate and steps that a method got on the development languages.
struct chosen_setting {
    std::string method;
    int words = 0; ///< 0: the setting of its multi-task training
    double rate = 0;
    int steps = 0;
    double development_bits = 0; ///< mean over the development languages with this setting
};

/// Loss on the training batches of a multi-task training.
struct learning_curve {
    std::string method;
    std::uint64_t seed = 0;
    double seconds = 0; ///< of the training, processor time
    std::vector<int> step;
    std::vector<double> bits_per_character; ///< mean over the steps since the entry before
};

/// Mean pairwise cosine of the gradients of the training tasks to the shared modules, as it was at
/// some steps of a multi-task training.
struct alignment_curve {
    std::string method;
    std::uint64_t seed = 0;
    std::vector<int> step;
    std::vector<double> overall;                ///< of all layers together
    std::vector<std::vector<double>> of_layers; ///< [layers][steps]
};

/// Routing weights of the training tasks after multi-task training: `weights` is
/// [tasks, columns], with one column for each layer, head and module, in this order. Tasks that are
/// routed alike are next to each other.
struct routing_map {
    std::string method;
    std::vector<std::string> languages;
    int layers = 0;
    int heads = 0;
    int modules = 0;
    std::vector<float> weights;
};

/// Everything that a run of the experiment found.
struct results {
    std::vector<std::string> methods;           ///< few-shot methods, in the order of the tables
    std::vector<std::string> zero_shot_methods; ///< likewise
    std::vector<std::string> fit_methods;       ///< likewise
    std::vector<std::uint64_t> seeds;
    std::vector<int> word_counts; ///< the numbers of words, without 0
    std::vector<std::string> training_languages, development_languages, test_languages;

    std::vector<adaptation_result> adaptation; ///< test languages, zero-shot included
    std::vector<fit_result> fit;               ///< training languages
    std::vector<chosen_setting> settings;
    std::vector<learning_curve> curves;
    std::vector<alignment_curve> alignment;
    std::vector<routing_map> routing; ///< of the first seed

    double seconds = 0; ///< of the whole run
    int threads = 0;
    std::string size;    ///< quick, default or full
    std::string summary; ///< the settings that all methods share, as sentences for the report
};

} // namespace cross_task
