#pragma once

#include "random.hpp"

#include <Eigen/Core>

#include <cstdint>
#include <string>
#include <vector>

namespace cross_task {

/// Symbols: 0 is the word boundary, 1 .. 26 are a .. z.
constexpr int symbol_count = 27;

/// Symbols a prediction may look back on.
constexpr int context_length = 5;

/// Training positions: the context of each and the symbol that follows it.
struct batch {
    Eigen::Array<int, Eigen::Dynamic, context_length, Eigen::RowMajor> contexts; ///< [rows, 5]
    Eigen::ArrayXi targets;                                                      ///< [rows]

    batch() = default;
    explicit batch(Eigen::Index rows) { resize(rows); }

    Eigen::Index rows() const { return targets.size(); }

    void resize(Eigen::Index rows) {
        contexts.resize(rows, context_length);
        targets.resize(rows);
    }
};

/// All positions of some words. A word of n letters has n + 1 of them: one for each letter and one
/// for the boundary that ends it. A context never reaches into the word before; it is padded with
/// boundaries on the left.
class position_list {
  public:
    position_list() = default;

    /// `words` are of the letters a-z; throws `std::invalid_argument` for any other.
    explicit position_list(const std::vector<std::string>& words);

    Eigen::Index size() const { return static_cast<Eigen::Index>(targets_.size()); }

    /// Fills rows [first_row, first_row + rows) of `to` (already large enough) with positions drawn
    /// uniformly, with replacement.
    void sample(random_engine& random, batch& to, Eigen::Index first_row, Eigen::Index rows) const;

    /// Fills the whole of `to` likewise.
    void sample(random_engine& random, batch& to) const { sample(random, to, 0, to.rows()); }

    /// Makes `to` the positions [first, first + rows), in the order of the words.
    void slice(Eigen::Index first, Eigen::Index rows, batch& to) const;

  private:
    void copy(Eigen::Index position, batch& to, Eigen::Index row) const;

    std::vector<std::uint8_t> symbols_;  // context_length boundaries, then each word, padded
    std::vector<std::uint32_t> targets_; // where in symbols_ the target of each position is
};

} // namespace cross_task
