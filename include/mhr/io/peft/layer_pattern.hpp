#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mhr/core/error.hpp>
#include <mhr/io/files/printable.hpp>

/// \file
/// The patterns by which configurations of PEFT choose layers (rank_pattern, alpha_pattern):
/// regular expressions of Python, of which those that people write are understood: characters, and
///
///     .  ^  $  [0-3]  \d  ( )  |  *  +  ?  {2}  {1,2}
///
/// Others (look-around, back-references, word boundaries) are refused.
///
/// All ways to match are followed at the same time, so that no pattern takes more than the product
/// of its length and the name's; what a file may spend in all is bounded, too.

namespace mhr {
inline namespace MHR_ISA {
namespace peft_details {

/// What may still be spent on matching for one key of a configuration.
struct matching {
    std::string where;                            ///< begins each message
    std::uint64_t steps = std::uint64_t(1) << 26; ///< less than a second

    void spend(std::uint64_t count) {
        if (count > steps) raise(where + ": expected names that are soon compared, got too many");
        steps -= count;
    }
};

/// One regular expression as a machine of states, run for one name.
class layer_pattern {
  public:
    /// These are refused: what is not understood, or more than 4096 states.
    layer_pattern(std::string_view text, const std::string& where) : text_(text), where_(where) {
        program_ = parse_alternatives(0);
        if (at_ != text_.size()) fail("a ')' that no '(' began");
    }

    /// True if the whole name matches.
    [[nodiscard]] bool matches(std::string_view name, matching& budget) const {
        std::vector<std::size_t> current, following, pending;
        std::vector<std::size_t> seen(program_.size() + 1, 0); // the place + 1 at which it was
        const auto add = [&](std::vector<std::size_t>& states, std::size_t first, std::size_t at) {
            pending.push_back(first);
            while (!pending.empty()) {
                const std::size_t state = pending.back();
                pending.pop_back();
                if (std::exchange(seen[state], at + 1) == at + 1) continue;
                if (state == program_.size()) {
                    states.push_back(state);
                    continue;
                }
                const instruction& now = program_[state];
                switch (now.what) {
                case kind::one_of:
                    states.push_back(state);
                    break;
                case kind::split:
                    pending.push_back(target(state, now.jump));
                    pending.push_back(target(state, now.other));
                    break;
                case kind::begin:
                    if (at == 0) pending.push_back(state + 1);
                    break;
                case kind::end:
                    if (at == name.size()) pending.push_back(state + 1);
                    break;
                }
            }
        };
        budget.spend(program_.size() + 1);
        add(current, 0, 0);
        for (std::size_t at = 0; at < name.size() && !current.empty(); ++at) {
            budget.spend(4 * current.size());
            following.clear();
            for (std::size_t state : current)
                if (state < program_.size() &&
                    sets_[program_[state].set][static_cast<unsigned char>(name[at])])
                    add(following, state + 1, at + 1);
            current.swap(following);
        }
        return std::find(current.begin(), current.end(), program_.size()) != current.end();
    }

  private:
    using byte_set = std::bitset<256>;
    enum class kind { one_of, split, begin, end };
    struct instruction {
        kind what;
        int jump = 0; ///< of a split, relative
        int other = 0;
        std::size_t set = 0; ///< of one_of
    };
    using fragment = std::vector<instruction>;
    static constexpr std::size_t most_states = 4096;
    static constexpr int most_groups = 32; ///< inside each other

    static std::size_t target(std::size_t state, int jump) {
        return static_cast<std::size_t>(static_cast<std::ptrdiff_t>(state) + jump);
    }

    [[noreturn]] void fail(const std::string& got) const {
        raise(where_ + ": expected a pattern that is understood, got " + got + " in " +
              in_quotes(text_));
    }

    [[nodiscard]] bool next_is(char c) const { return at_ < text_.size() && text_[at_] == c; }
    [[nodiscard]] bool next_is_repetition() const {
        return next_is('*') || next_is('+') || next_is('?') || next_is('{');
    }
    bool take(char c) {
        if (!next_is(c)) return false;
        ++at_;
        return true;
    }
    char take_any() {
        if (at_ == text_.size()) fail("an end");
        return text_[at_++];
    }

    void append(fragment& to, const fragment& from) const {
        if (to.size() + from.size() > most_states) fail("too much");
        to.insert(to.end(), from.begin(), from.end());
    }
    static instruction split(std::size_t jump, std::size_t other) {
        return {kind::split, static_cast<int>(jump), static_cast<int>(other)};
    }
    fragment one_of(const byte_set& bytes) {
        sets_.push_back(bytes);
        return {{kind::one_of, 0, 0, sets_.size() - 1}};
    }

    fragment parse_alternatives(int depth) {
        if (depth > most_groups) fail("groups inside groups");
        fragment left = parse_sequence(depth);
        while (take('|')) {
            const fragment right = parse_sequence(depth);
            fragment both{split(1, left.size() + 2)};
            append(both, left);
            const auto skip = right.size() + 1;
            both.push_back(split(skip, skip));
            append(both, right);
            left = std::move(both);
        }
        return left;
    }

    fragment parse_sequence(int depth) {
        fragment result;
        while (at_ < text_.size() && !next_is('|') && !next_is(')'))
            append(result, repeated(parse_atom(depth)));
        return result;
    }

    fragment parse_atom(int depth) {
        const char c = take_any();
        switch (c) {
        case '(': {
            if (take('?') && !take(':')) fail("an extension '(?'");
            fragment inner = parse_alternatives(depth + 1);
            if (!take(')')) fail("a '(' that nothing ends");
            return inner;
        }
        case '[':
            return one_of(parse_class());
        case '.':
            return one_of(byte_set().set().reset('\n'));
        case '^':
            return place(kind::begin);
        case '$':
            return place(kind::end);
        case '\\':
            return one_of(parse_escape());
        case '*':
        case '+':
        case '?':
        case '{':
            fail(std::string("'") + c + "' after nothing");
        default:
            return one_of(byte_set().set(static_cast<unsigned char>(c)));
        }
    }

    /// Python has nothing to repeat there.
    fragment place(kind what) {
        if (next_is_repetition()) fail("a repetition of '^' or '$'");
        return {{what}};
    }

    static byte_set range(char first, char last) {
        byte_set result;
        for (int c = static_cast<unsigned char>(first); c <= static_cast<unsigned char>(last); ++c)
            result.set(static_cast<std::size_t>(c));
        return result;
    }

    byte_set parse_escape() {
        const char c = take_any();
        switch (c) {
        case 'd':
            return range('0', '9');
        case 'D':
            return ~range('0', '9');
        case 'w':
            return word_characters();
        case 'W':
            return ~word_characters();
        default:
            if (word_characters()[static_cast<unsigned char>(c)])
                fail(std::string("'\\") + c + "'");
            return byte_set().set(static_cast<unsigned char>(c));
        }
    }
    static byte_set word_characters() {
        return range('0', '9') | range('a', 'z') | range('A', 'Z') | range('_', '_');
    }

    byte_set parse_class() {
        byte_set result;
        const bool negated = take('^');
        for (bool first = true; first || !next_is(']'); first = false) {
            const char c = take_any();
            if (c == '\\') {
                result |= parse_escape();
            } else if (at_ + 1 < text_.size() && next_is('-') && text_[at_ + 1] != ']') {
                ++at_;
                const char last = take_any();
                if (last == '\\' || last < c) fail("such a range of characters");
                result |= range(c, last);
            } else {
                result.set(static_cast<unsigned char>(c));
            }
        }
        ++at_; // the bracket
        return negated ? ~result : result;
    }

    /// What follows an atom: how often it may come.
    fragment repeated(const fragment& atom) {
        std::size_t least = 1;
        std::size_t most = 1;
        bool endless = false;
        if (take('*')) {
            least = 0;
            endless = true;
        } else if (take('+')) {
            endless = true;
        } else if (take('?')) {
            least = 0;
        } else if (take('{')) {
            least = most = parse_number();
            if (take(',')) {
                endless = next_is('}');
                if (!endless) most = parse_number();
            }
            if (!take('}') || (!endless && most < least)) fail("such a '{'");
        } else {
            return atom;
        }
        take('?'); // lazily: the same names match
        if (next_is_repetition()) fail("two repetitions");

        fragment result;
        for (std::size_t i = 0; i < least; ++i)
            append(result, atom);
        fragment again{split(1, atom.size() + 1 + (endless ? 1 : 0))};
        append(again, atom);
        if (endless) {
            const int back = -static_cast<int>(atom.size()) - 1;
            again.push_back({kind::split, back, back});
        }
        for (std::size_t i = least; i < (endless ? least + 1 : most); ++i)
            append(result, again);
        return result;
    }
    std::size_t parse_number() {
        std::size_t result = 0;
        const std::size_t first = at_;
        while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9')
            result = (std::min)(result * 10 + static_cast<std::size_t>(text_[at_++] - '0'),
                                most_states + 1);
        if (at_ == first) fail("no number in '{}'");
        return result;
    }

    std::string_view text_;
    const std::string& where_;
    std::size_t at_ = 0;
    std::vector<byte_set> sets_{};
    fragment program_{};
};

/// True if a layer is one that PEFT's `(.*\.)?(pattern)$` finds: most patterns are the last parts
/// of names, in which `.` matches every character.
inline bool matches_layer(std::string_view pattern, std::string_view layer, matching& budget) {
    const bool whole = !pattern.empty() && pattern.front() == '^';
    const std::string_view plain = whole ? pattern.substr(1) : pattern;
    if (plain.find_first_of("\\[](){}*+?|^$") != std::string_view::npos) {
        budget.spend(8 * (pattern.size() + 8));
        (void)layer_pattern(pattern, budget.where); // its brackets are not to pair with those below
        const std::string text = "(.*\\.)?(" + std::string(pattern) + ")$";
        return layer_pattern(text, budget.where).matches(layer, budget);
    }
    budget.spend(1 + plain.size() / 8);
    if (plain.size() > layer.size()) return false;
    const std::string_view tail = layer.substr(layer.size() - plain.size());
    const bool aligned =
        tail.size() == layer.size() || (!whole && layer[layer.size() - tail.size() - 1] == '.');
    return aligned && std::equal(plain.begin(), plain.end(), tail.begin(),
                                 [](char p, char c) { return p == c || p == '.'; });
}

} // namespace peft_details
} // namespace MHR_ISA
} // namespace mhr
