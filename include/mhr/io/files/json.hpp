#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/error.hpp>
#include <mhr/io/files/printable.hpp>

/// \file
/// JSON of files that nobody vouches for: nlohmann's parser within limits. What a parser keeps may
/// be many times the text that it reads, so only one member of the outermost object is kept at a
/// time, and how much each may hold is bounded.

namespace mhr {
inline namespace MHR_ISA {

/// What a text may contain.
struct json_limits {
    std::size_t bytes;            ///< of the text
    std::size_t depth;            ///< of nesting, the outermost object included
    std::size_t members;          ///< of the outermost object
    std::size_t values = 1 << 16; ///< of each of these, inner ones included
    std::size_t keys = 1 << 12;   ///< of each inner object
    std::size_t token = 1 << 20;  ///< bytes of a string or number
};

/// A text, and what messages say of it.
struct json_source {
    std::string name;           ///< begins each message, as in "safetensors: FILE"
    std::string_view text;      ///< to be parsed
    std::size_t first_byte = 0; ///< of the file, at which the text begins

    /// Raises an error about what stands at `offset` of the text.
    [[noreturn]] void fail(const std::string& subject, const std::string& expected,
                           const std::string& got, std::size_t offset) const {
        raise(name + ": " + subject + ": expected " + expected + ", got " + got + " (byte " +
              std::to_string(first_byte + offset) + ")");
    }
};

namespace json_details {

/// How JSON is kept: names in their order in the file.
using json = nlohmann::ordered_json;

/// Where the parser is, and the length of what it reads: nlohmann's keeps the text of a token three
/// times over.
struct json_position {
    const json_source* source;
    std::size_t longest_token;
    std::size_t offset = 0; ///< of the next character
    std::size_t token = 0;  ///< where the token began
    bool inside_string = false;
    bool escaped = false;

    /// Where what the parser has just told of begins: a string, a number's end, a bracket.
    [[nodiscard]] std::size_t last() const { return token < offset ? token : offset - 1; }

    void pass(char c) {
        const bool ends =
            !inside_string && std::string_view(" \t\r\n{}[]:,").find(c) != std::string_view::npos;
        if (c == '"' && !escaped) {
            if (!inside_string) token = offset;
            inside_string = !inside_string;
        }
        escaped = inside_string && c == '\\' && !escaped;
        ++offset;
        if (ends) token = offset;
        if (offset - token > longest_token)
            source->fail("JSON",
                         "strings and numbers of at most " + std::to_string(longest_token) +
                             " bytes",
                         "a longer one", token);
    }
};

/// The characters of a text, for the parser; tells the position of each that is read.
class json_characters {
  public:
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;

    json_characters(const char* at, json_position* position) : at_(at), position_(position) {}
    const char& operator*() const { return *at_; }
    json_characters& operator++() {
        position_->pass(*at_);
        ++at_;
        return *this;
    }
    json_characters operator++(int) {
        const json_characters before = *this;
        ++*this;
        return before;
    }
    bool operator==(const json_characters& other) const { return at_ == other.at_; }
    bool operator!=(const json_characters& other) const { return at_ != other.at_; }

  private:
    const char* at_;
    json_position* position_;
};

/// What nlohmann's parser calls: builds one member after the other and hands it on.
template <class Member>
class json_members {
  public:
    using number_integer_t = json::number_integer_t;
    using number_unsigned_t = json::number_unsigned_t;
    using number_float_t = json::number_float_t;
    using string_t = json::string_t;
    using binary_t = json::binary_t;

    json_members(const json_source& source, const json_limits& limits,
                 const json_position& position, Member& member)
        : source_(source), limits_(limits), position_(position), member_(member) {}

    bool null() { return scalar(nullptr); }
    bool boolean(bool value) { return scalar(value); }
    bool number_integer(number_integer_t value) { return scalar(value); }
    bool number_unsigned(number_unsigned_t value) { return scalar(value); }
    bool number_float(number_float_t value, const string_t&) { return scalar(value); }
    bool string(string_t& value) { return scalar(std::move(value)); }
    bool binary(binary_t&) { return false; } // JSON has none

    bool start_object(std::size_t) {
        if (outermost_) {
            outermost_ = false;
            return true;
        }
        return start(json::object());
    }
    bool start_array(std::size_t) { return start(json::array()); }
    bool end_object() { return open_.empty() || end(); }
    bool end_array() { return end(); }

    bool key(string_t& name) {
        if (open_.empty()) {
            if (++members_ > limits_.members)
                fail("at most " + std::to_string(limits_.members) + " members", "more");
            name_ = std::move(name);
            name_offset_ = position_.last();
            values_ = 0;
            return true;
        }
        key_ = std::move(name);
        if (open_.back()->contains(key_))
            fail("names that come once", "another " + in_quotes(key_));
        if (open_.back()->size() >= limits_.keys)
            fail("at most " + std::to_string(limits_.keys) + " names in an object", "more");
        return true;
    }

    bool parse_error(std::size_t, const string_t&, const json::exception& problem) {
        std::string_view text = problem.what();
        text.remove_prefix((std::min)(text.find(']') + 2, text.size())); // its number
        source_.fail("JSON", "well-formed JSON", printable(text), position_.offset);
    }

  private:
    [[noreturn]] void fail(const std::string& expected, const std::string& got) {
        source_.fail("JSON", expected, got, position_.last());
    }

    json* put(json&& value) {
        if (outermost_) fail("an object", "another value");
        if (++values_ > limits_.values)
            fail("at most " + std::to_string(limits_.values) + " values in " + in_quotes(name_),
                 "more");
        if (open_.empty()) return &(value_ = std::move(value));
        json& parent = *open_.back();
        if (parent.is_array()) {
            parent.push_back(std::move(value));
            return &parent.back();
        }
        return &(parent[key_] = std::move(value));
    }

    template <class T>
    bool scalar(T&& value) {
        put(json(std::forward<T>(value)));
        return open_.empty() ? hand_on() : true;
    }
    bool start(json&& empty) {
        if (open_.size() + 2 > limits_.depth)
            fail("nesting of depth " + std::to_string(limits_.depth) + " at most", "more");
        open_.push_back(put(std::move(empty)));
        return true;
    }
    bool end() {
        open_.pop_back();
        return open_.empty() ? hand_on() : true;
    }
    bool hand_on() {
        member_(std::as_const(name_), std::move(value_), name_offset_);
        return true;
    }

    const json_source& source_;
    const json_limits& limits_;
    const json_position& position_;
    Member& member_;
    bool outermost_ = true; ///< the outermost object is yet to come
    std::size_t members_ = 0;
    std::string name_{}; ///< of the member
    std::size_t name_offset_ = 0;
    json value_{};
    std::size_t values_ = 0;
    std::vector<json*> open_{}; ///< objects and arrays inside the member, outer ones first
    std::string key_{};
};

} // namespace json_details

/// Parses a JSON object and calls `member(name, value, offset)` for each of its members, one after
/// the other, with the offset at which the name begins. A member whose name comes again is the
/// caller's to refuse; inside members this is done here.
///
/// These are refused: no JSON object (nlohmann's parser checks UTF-8, too), more than the limits
/// permit. They name the byte.
template <class Member>
void for_each_json_member(const json_source& source, const json_limits& limits, Member&& member) {
    if (source.text.size() > limits.bytes)
        source.fail("JSON", "at most " + std::to_string(limits.bytes) + " bytes",
                    std::to_string(source.text.size()), 0);
    json_details::json_position position{&source, limits.token};
    json_details::json_members<std::remove_reference_t<Member>> sax(source, limits, position,
                                                                    member);
    const char* const first = source.text.data();
    json_details::json::sax_parse(
        json_details::json_characters(first, &position),
        json_details::json_characters(first + source.text.size(), &position), &sax);
}

} // namespace MHR_ISA
} // namespace mhr
