#pragma once

#include "results.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cross_task {

/// The measurements of one method under one condition, for every seed and item of the run: bits per
/// character of languages, or cosines at steps of a training.
class scores {
  public:
    /// After adaptation to `words` words; 0: zero-shot. Throws `std::runtime_error` if a seed or
    /// test language is missing, is there twice or is not a finite number.
    static scores of_adaptation(const results& from, const std::string& method, int words);

    /// On the training languages after multi-task training. Throws likewise.
    static scores of_fit(const results& from, const std::string& method);

    /// Gradient alignment of all layers together over the multi-task training, or of one layer
    /// (0 and more); the items are the steps. Throws likewise.
    static scores of_alignment(const results& from, const std::string& method, int layer = -1);

    std::size_t seeds() const { return values_.size(); }
    std::size_t items() const { return values_.front().size(); }
    double at(std::size_t seed, std::size_t item) const { return values_[seed][item]; }

  private:
    explicit scores(std::vector<std::vector<double>> values) : values_(std::move(values)) {}

    std::vector<std::vector<double>> values_; // [seed][item], both in the order of the results
};

/// The results of a method: seeds are repetitions of the experiment, languages are parts of it.
struct summary {
    std::vector<double> of_seeds;             ///< mean over the items, for each seed
    double mean = 0;                          ///< of these
    std::optional<double> standard_deviation; ///< of these (n - 1); none with a single seed
};

summary summarise(const scores& of);

/// The scores of a first method minus those of a second one; of bits, below zero the first is
/// better.
struct difference {
    double mean = 0;                      ///< over seeds of the mean over items
    std::optional<double> standard_error; ///< of it, from the seeds; none with a single seed
    int lower = 0;                        ///< (seed, item) pairs with the lower score for the first
    int pairs = 0;
};

/// Throws `std::runtime_error` unless both have the same seeds and items.
difference compare(const scores& first, const scores& second);

/// The cost of adapting a method to `words` words.
struct cost {
    std::int64_t trained_parameters = 0;
    double seconds = 0; ///< mean over seeds and languages
};

/// Throws `std::runtime_error` if there is no result or they differ in the trained parameters.
cost adaptation_cost(const results& from, const std::string& method, int words);

} // namespace cross_task
