#pragma once

#include "languages.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cross_task {

/// A word's place in a list: lists are ordered by this hash, the same on every machine, so that a
/// prefix of a list is a random choice of its words, and with another `salt` another choice.
std::uint64_t word_hash(std::string_view word, std::string_view salt = {});

struct word_list_options {
    list_format format = list_format::plain;
    std::string encoding; ///< of the file, an iconv name; empty: UTF-8, else Latin-1, line by line
    bool capitalised =
        false;        ///< lower-case a word that begins with a capital instead of dropping it
    std::string salt; ///< of the hash that orders the words
    std::size_t most_words = 10000;
};

/// The words of a file as letters a-z: lower-case words of 3 to 20 letters, marks stripped, each
/// once, in the order of their hash, and of these the first `most_words`. Lines that are no such
/// word (names, acronyms, digits, hyphens, bytes that are no text) are skipped. Throws
/// `std::runtime_error` if the file cannot be opened or its encoding is unknown.
std::vector<std::string> read_words(const std::string& path, const word_list_options& options = {});

/// Disjoint words of a language.
struct language_data {
    std::string code;
    std::string name;
    std::vector<std::string> evaluation;
    std::vector<std::string> few_shot; ///< empty for host and training languages
    std::vector<std::string> training; ///< all that remain
};

struct corpus {
    std::vector<language_data> host, training, development, test;
};

struct corpus_options {
    /// A folder of <code>.txt files (UTF-8, one word a line); empty: Debian's dictionaries.
    std::string words_directory;
    std::string system_directory = "/usr/share"; ///< where Debian's dictionaries are

    std::size_t evaluation_words = 1000;    ///< of each language
    std::size_t few_shot_words = 512;       ///< of each development and test language
    std::size_t least_training_words = 256; ///< of each host and training language
    std::size_t most_words = 10000;         ///< of each language, for all purposes
    unsigned threads = 2;
};

/// Reads and splits the words of all languages. An evaluation word of a development or test
/// language is never a training word of a host or training language. Throws `std::runtime_error`
/// that names the languages which are missing or have too few words.
corpus load_corpus(const corpus_options& options = {});

} // namespace cross_task
