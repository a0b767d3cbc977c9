#pragma once

#include <string>
#include <vector>

namespace cross_task {

/// The use of a language's words.
enum class language_role { host, training, development, test };

/// How a word list is written.
enum class list_format {
    plain,   ///< one word a line
    hunspell ///< a count, then WORD/FLAGS a line; the encoding is in the .aff file beside it
};

/// A language of the experiment and the Debian package that has a list of its words.
struct language {
    std::string code;
    std::string name;
    language_role role;
    list_format format;
    std::string package;
    std::string file;         ///< below /usr/share
    bool capitalised = false; ///< ordinary words may begin with a capital (German nouns)
};

/// All languages: host, training, development and test, each in a fixed order.
const std::vector<language>& all_languages();

} // namespace cross_task
