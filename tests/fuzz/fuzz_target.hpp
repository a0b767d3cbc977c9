#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/error.hpp>

/// \file
/// What a fuzz target (<name>_fuzz.cpp) consists of, and how it says that something is wrong.

/// Tries one input. What does not hold ends the program, as a sanitizer would; so does every
/// exception, as none may leave this.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace mhr::test {

/// Good inputs, for the fuzzer to begin with.
std::vector<std::string> fuzz_seeds();

/// How many inputs were good: each seed has to be.
inline std::size_t good_inputs = 0;

inline void must(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "fuzz: this does not hold: %s\n", what);
    std::abort();
}

/// True of UTF-8 without control characters (but for ends of lines, where these are expected), told
/// by nlohmann's parser of JSON, which refuses both in strings, and by the bytes.
inline bool is_readable(std::string text, bool lines) {
    if (lines) std::replace(text.begin(), text.end(), '\n', ' ');
    for (const char* const hidden : {"\x7f", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xae"})
        if (text.find(hidden) != std::string::npos) return false;
    for (std::size_t i = 0; i + 1 < text.size(); ++i) // U+0080 to U+009F
        if (text[i] == '\xc2' && static_cast<unsigned char>(text[i + 1]) < 0xa0) return false;
    for (char& c : text)
        if (c == '"' || c == '\\') c = ' ';
    return nlohmann::json::accept('"' + text + '"');
}

/// A message is one line that any terminal can show, whatever the file says, and tells what was
/// expected.
inline void check_message(const error& thrown) {
    const std::string message = thrown.what();
    const auto expected = message.find(": expected ");
    must(expected != std::string::npos && message.find(", got ", expected) != std::string::npos,
         "a message says what was expected and what came");
    must(message.size() < 2000, "a message is short");
    must(is_readable(message, false), "a message is printable");
}

/// True if `f()` does not throw mhr::error.
template <class F>
bool accepted(F&& f) {
    try {
        f();
        return true;
    } catch (const error& thrown) {
        check_message(thrown);
        return false;
    }
}

/// Reads every byte, so that AddressSanitizer sees each.
inline void touch(const void* memory, std::size_t size) {
    const auto* const bytes = static_cast<const volatile unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i)
        (void)bytes[i];
}

} // namespace mhr::test
