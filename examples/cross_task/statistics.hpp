#pragma once

#include "results.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cross_task {

/// Bits per character of one method under one condition, for every seed and language of the run.
class scores {
  public:
    /// After adaptation to `words` words; 0: zero-shot. Throws `std::runtime_error` if a seed or
    /// test language is missing, is there twice or is not a finite number.
    static scores of_adaptation(const results& from, const std::string& method, int words);

    /// On the training languages after multi-task training. Throws likewise.
    static scores of_fit(const results& from, const std::string& method);

    std::size_t seeds() const { return bits_.size(); }
    std::size_t languages() const { return bits_.front().size(); }
    double at(std::size_t seed, std::size_t language) const { return bits_[seed][language]; }

  private:
    explicit scores(std::vector<std::vector<double>> bits) : bits_(std::move(bits)) {}

    std::vector<std::vector<double>> bits_; // [seed][language], both in the order of the results
};

/// What a method reached: seeds are repetitions of the experiment, languages are parts of it.
struct summary {
    std::vector<double> of_seeds;             ///< mean over the languages, for each seed
    double mean = 0;                          ///< of these
    std::optional<double> standard_deviation; ///< of these (n - 1); none with a single seed
};

summary summarise(const scores& of);

/// The bits of a first method minus those of a second one; below zero the first is better.
struct difference {
    double mean = 0;                      ///< over seeds of the mean over languages
    std::optional<double> standard_error; ///< of it, from the seeds; none with a single seed
    int wins = 0;                         ///< (seed, language) pairs with fewer bits for the first
    int pairs = 0;
};

/// Throws `std::runtime_error` unless both have the same seeds and languages.
difference compare(const scores& first, const scores& second);

/// What the adaptation of a method to `words` words costs.
struct cost {
    std::int64_t trained_parameters = 0;
    double seconds = 0; ///< mean over seeds and languages
};

/// Throws `std::runtime_error` if there is no result or they differ in the trained parameters.
cost adaptation_cost(const results& from, const std::string& method, int words);

} // namespace cross_task
