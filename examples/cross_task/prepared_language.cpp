#include "prepared_language.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace cross_task {

std::vector<prepared_language> prepare(const std::vector<language_data>& languages,
                                       const std::vector<int>& word_counts, std::size_t most) {
    std::vector<prepared_language> result;
    for (std::size_t i = 0; i < std::min(most, languages.size()); ++i) {
        const language_data& language = languages[i];
        prepared_language prepared{language.code,
                                   position_list(language.evaluation),
                                   position_list(language.training),
                                   {}};
        for (int count : word_counts) {
            const auto available = static_cast<std::ptrdiff_t>(language.few_shot.size());
            prepared.few_shot.emplace_back(std::vector<std::string>(
                language.few_shot.begin(),
                language.few_shot.begin() + std::min<std::ptrdiff_t>(count, available)));
        }
        result.push_back(std::move(prepared));
    }
    return result;
}

} // namespace cross_task
