#include "positions.hpp"

#include <cstddef>
#include <limits>
#include <stdexcept>

namespace cross_task {

position_list::position_list(const std::vector<std::string>& words) {
    std::size_t positions = 0;
    for (const std::string& word : words)
        positions += word.size() + 1;
    const std::size_t symbols = positions + words.size() * (context_length - 1) + 1;
    if (symbols > std::numeric_limits<std::uint32_t>::max())
        throw std::invalid_argument("position_list: too many words");
    targets_.reserve(positions);
    symbols_.reserve(symbols);

    // The boundary that ends a word is also the first of the next word's padding.
    symbols_.push_back(0);
    for (const std::string& word : words) {
        symbols_.insert(symbols_.end(), context_length - 1, std::uint8_t{0});
        for (const char letter : word) {
            if (letter < 'a' || letter > 'z')
                throw std::invalid_argument("position_list: no word of a-z: " + word);
            targets_.push_back(static_cast<std::uint32_t>(symbols_.size()));
            symbols_.push_back(static_cast<std::uint8_t>(letter - 'a' + 1));
        }
        targets_.push_back(static_cast<std::uint32_t>(symbols_.size()));
        symbols_.push_back(0);
    }
}

void position_list::sample(random_engine& random, batch& to, Eigen::Index first_row,
                           Eigen::Index rows) const {
    for (Eigen::Index row = first_row; row < first_row + rows; ++row)
        copy(static_cast<Eigen::Index>(random.integer(targets_.size())), to, row);
}

void position_list::slice(Eigen::Index first, Eigen::Index rows, batch& to) const {
    to.resize(rows);
    for (Eigen::Index row = 0; row < rows; ++row)
        copy(first + row, to, row);
}

void position_list::copy(Eigen::Index position, batch& to, Eigen::Index row) const {
    const std::size_t target = targets_[static_cast<std::size_t>(position)];
    for (std::size_t c = 0; c < context_length; ++c)
        to.contexts(row, static_cast<Eigen::Index>(c)) = symbols_[target - context_length + c];
    to.targets(row) = symbols_[target];
}

} // namespace cross_task
