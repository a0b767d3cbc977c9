#include "words.hpp"

#include "letters.hpp"
#include "text_decoder.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <fstream>
#include <future>
#include <limits>
#include <stdexcept>
#include <unordered_set>
#include <utility>

namespace cross_task {

namespace {

constexpr std::size_t shortest_word = 3;
constexpr std::size_t longest_word = 20;

// The lines of a file, one at a time. Lines too long to hold a word are passed over, whatever their
// length, so that memory stays bounded.
class line_reader {
  public:
    explicit line_reader(const std::string& path) : file_(path, std::ios::binary) {
        if (!file_) throw std::runtime_error("cannot open " + path);
    }

    bool next(std::string_view& line) {
        while (file_.good()) {
            file_.getline(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
            auto length = static_cast<std::size_t>(file_.gcount());
            if (file_.bad()) return false;
            if (file_.fail() && !file_.eof()) { // no end of line within the buffer
                file_.clear();
                file_.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
                continue;
            }
            if (!file_.eof()) --length; // the newline is counted, though not stored
            line = {buffer_.data(), length};
            while (!line.empty() && (line.back() == '\r' || line.back() == ' '))
                line.remove_suffix(1);
            return true;
        }
        return false;
    }

  private:
    std::ifstream file_;
    std::array<char, 1024> buffer_{};
};

// The word of a line WORD/FLAGS of a .dic file, which may be followed by a tab or a space and
// fields such as "po:noun".
std::string_view hunspell_word(std::string_view line) {
    line = line.substr(0, line.find_first_of("/\t"));
    const std::size_t space = line.find(' ');
    const bool fields = space != std::string_view::npos && line.substr(space).find(':') == 3;
    return fields ? line.substr(0, space) : line;
}

// The first words, in the order of their hash, of all that are added, each once.
class first_words {
  public:
    first_words(std::size_t most, std::string salt) : most_(most), salt_(std::move(salt)) {}

    void add(const std::string& word) {
        const std::uint64_t hash = word_hash(word, salt_);
        if (hash > highest_) return;
        words_.emplace_back(hash, word);
        if (words_.size() >= 2 * most_ + 1000) prune();
    }

    std::vector<std::string> take() {
        prune();
        std::vector<std::string> words;
        words.reserve(words_.size());
        for (auto& entry : words_)
            words.push_back(std::move(entry.second));
        return words;
    }

  private:
    void prune() {
        std::sort(words_.begin(), words_.end());
        words_.erase(std::unique(words_.begin(), words_.end()), words_.end());
        if (words_.size() <= most_) return;
        words_.resize(most_);
        if (most_ > 0) highest_ = words_.back().first;
    }

    std::size_t most_;
    std::string salt_;
    std::uint64_t highest_ = std::numeric_limits<std::uint64_t>::max();
    std::vector<std::pair<std::uint64_t, std::string>> words_;
};

// The encoding of a .dic file, from the SET line of the .aff file beside it; empty if it has none.
std::string hunspell_encoding(const std::string& dic) {
    const std::string aff = dic.substr(0, dic.size() - 4) + ".aff";
    if (!std::ifstream(aff)) return {};
    line_reader lines(aff);
    for (std::string_view line; lines.next(line);) {
        if (line.substr(0, 4) == "SET ")
            return std::string(line.substr(line.find_last_of(' ') + 1));
    }
    return {};
}

std::string word_file(const language& from, const corpus_options& options) {
    if (options.words_directory.empty()) return options.system_directory + "/" + from.file;
    return options.words_directory + "/" + from.code + ".txt";
}

void require_files(const corpus_options& options) {
    const bool system = options.words_directory.empty();
    std::string missing;
    std::string packages = " ";
    for (const language& l : all_languages()) {
        const std::string path = word_file(l, options);
        if (std::ifstream(path)) continue;
        missing += "\n  " + l.code + " (" + l.name + "): " + path;
        if (packages.find(" " + l.package + " ") == std::string::npos) packages += l.package + " ";
    }
    if (missing.empty()) return;
    throw std::runtime_error(
        "no word lists of these languages:" + missing +
        (system ? "\nOn Debian install them with: apt-get install" + packages +
                      "\nElsewhere give a folder of <code>.txt files, UTF-8, one word a line."
                : "\nThe folder must have a file <code>.txt for every language, UTF-8, one word a "
                  "line."));
}

std::vector<std::string> read_language(const language& from, const corpus_options& options) {
    const std::string path = word_file(from, options);
    word_list_options list;
    list.capitalised = from.capitalised;
    list.most_words = options.most_words;
    // With one order for all, the capped lists of related languages would be of the same words.
    list.salt = from.code;
    if (!options.words_directory.empty()) {
        list.encoding = "UTF-8";
    } else if (from.format == list_format::hunspell) {
        list.format = list_format::hunspell;
        list.encoding = hunspell_encoding(path);
    }
    return read_words(path, list);
}

// The words of every language, in the order of the table.
std::vector<std::vector<std::string>> read_languages(const corpus_options& options) {
    const std::vector<language>& languages = all_languages();
    std::vector<std::vector<std::string>> words(languages.size());
    std::atomic<std::size_t> next{0};
    const auto read = [&] {
        for (std::size_t i = next++; i < languages.size(); i = next++)
            words[i] = read_language(languages[i], options);
    };
    std::vector<std::future<void>> others;
    for (unsigned t = 1; t < options.threads; ++t)
        others.push_back(std::async(std::launch::async, read));
    read();
    for (auto& other : others)
        other.get();
    return words;
}

bool is_new(language_role role) {
    return role == language_role::development || role == language_role::test;
}

using word_set = std::unordered_set<std::string>;

// Splits the words of a language; none of `refused` is used for its evaluation.
language_data split(const language& of, std::vector<std::string> words, const word_set& refused,
                    const corpus_options& options) {
    language_data data{of.code, of.name, {}, {}, {}};
    const std::size_t few_shot = is_new(of.role) ? options.few_shot_words : 0;
    const std::size_t training = is_new(of.role) ? 0 : options.least_training_words;
    const std::size_t found = words.size();
    for (std::string& word : words) {
        if (data.evaluation.size() < options.evaluation_words) {
            if (refused.count(word) == 0) data.evaluation.push_back(std::move(word));
        } else if (data.few_shot.size() < few_shot) {
            data.few_shot.push_back(std::move(word));
        } else {
            data.training.push_back(std::move(word));
        }
    }
    if (data.evaluation.size() < options.evaluation_words || data.few_shot.size() < few_shot ||
        data.training.size() < training) {
        const std::size_t usable =
            data.evaluation.size() + data.few_shot.size() + data.training.size();
        throw std::runtime_error(
            "too few words of " + of.name + " (" + of.code + "): found " + std::to_string(found) +
            (usable < found ? ", of which " + std::to_string(found - usable) +
                                  " are training words of another language"
                            : "") +
            "; needed " + std::to_string(options.evaluation_words + few_shot + training) + " (" +
            std::to_string(options.evaluation_words) + " for evaluation, " +
            std::to_string(is_new(of.role) ? few_shot : training) +
            (is_new(of.role) ? " few-shot)" : " for training)"));
    }
    return data;
}

} // namespace

std::uint64_t word_hash(std::string_view word, std::string_view salt) {
    std::uint64_t hash = 0xCBF29CE484222325U; // FNV-1a
    for (const std::string_view part : {salt, word}) {
        for (const char c : part)
            hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
    }
    // FNV-1a alone hardly spreads the last letters to the high bits, which order the words.
    hash = (hash ^ (hash >> 33)) * 0xFF51AFD7ED558CCDU;
    hash = (hash ^ (hash >> 33)) * 0xC4CEB9FE1A85EC53U;
    return hash ^ (hash >> 33);
}

std::vector<std::string> read_words(const std::string& path, const word_list_options& options) {
    line_reader lines(path);
    text_decoder decoder(options.encoding);
    first_words words(options.most_words, options.salt);
    std::string_view line;
    if (options.format == list_format::hunspell) lines.next(line); // the count
    std::u32string characters;
    std::string word;
    while (lines.next(line)) {
        if (options.format == list_format::hunspell) line = hunspell_word(line);
        if (!decoder.decode(line, characters)) continue;
        if (!fold_word(characters, options.capitalised, word)) continue;
        if (word.size() >= shortest_word && word.size() <= longest_word) words.add(word);
    }
    return words.take();
}

corpus load_corpus(const corpus_options& options) {
    require_files(options);
    std::vector<std::vector<std::string>> words = read_languages(options);

    corpus result;
    word_set seen;
    const word_set none;
    // The table has host and training languages first: their training words must be known before
    // the others are split.
    const std::vector<language>& languages = all_languages();
    for (std::size_t i = 0; i < languages.size(); ++i) {
        const language& from = languages[i];
        const word_set& refused = is_new(from.role) ? seen : none;
        language_data data = split(from, std::move(words[i]), refused, options);
        if (!is_new(from.role)) seen.insert(data.training.begin(), data.training.end());
        switch (from.role) {
        case language_role::host:
            result.host.push_back(std::move(data));
            break;
        case language_role::training:
            result.training.push_back(std::move(data));
            break;
        case language_role::development:
            result.development.push_back(std::move(data));
            break;
        case language_role::test:
            result.test.push_back(std::move(data));
            break;
        }
    }
    return result;
}

} // namespace cross_task
