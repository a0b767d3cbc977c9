#pragma once

#include "positions.hpp"
#include "words.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace cross_task {

/// A language with its words as positions.
struct prepared_language {
    std::string code;
    position_list evaluation;
    position_list training;
    std::vector<position_list> few_shot; ///< one for each number of words
};

/// The first `most` languages, with the first `word_counts` of their few-shot words.
std::vector<prepared_language> prepare(const std::vector<language_data>& languages,
                                       const std::vector<int>& word_counts, std::size_t most);

} // namespace cross_task
