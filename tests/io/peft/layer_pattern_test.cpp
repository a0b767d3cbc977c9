#include <string>

#include <doctest/doctest.h>

#include <mhr/io/peft/layer_pattern.hpp>

#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

bool finds(const std::string& pattern, const std::string& layer) {
    peft_details::matching budget{"key"};
    return peft_details::matches_layer(pattern, layer, budget);
}

/// The machine itself, on the whole name.
bool matches(const std::string& pattern, const std::string& name) {
    peft_details::matching budget{"key"};
    return peft_details::layer_pattern(pattern, budget.where).matches(name, budget);
}

} // namespace

TEST_CASE("layer_pattern: names are found as whole names and as last parts") {
    CHECK(finds("q_proj", "model.layers.0.self_attn.q_proj"));
    CHECK(finds("q_proj", "q_proj"));
    CHECK(finds("self_attn.q_proj", "model.layers.0.self_attn.q_proj"));
    CHECK_FALSE(finds("q_proj", "model.layers.0.self_attn.eq_proj"));
    CHECK_FALSE(finds("q_proj", "model.layers.0.self_attn.q_proj.lora"));
    CHECK_FALSE(finds("model.layers.0.self_attn.q_proj", "q_proj"));
    CHECK(finds("^model.q", "model.q"));
    CHECK_FALSE(finds("^model.q", "the.model.q"));
    CHECK(finds("a.b", "x.a_b")); // '.' is any character
    CHECK_FALSE(finds("a.b", "x.a"));
    CHECK(finds("", "x."));
    CHECK_FALSE(finds("", "x"));
}

TEST_CASE("layer_pattern: regular expressions are found likewise") {
    CHECK(finds(R"(layers\.[0-3]\..*_proj)", "model.layers.2.self_attn.q_proj"));
    CHECK_FALSE(finds(R"(layers\.[0-3]\..*_proj)", "model.layers.4.self_attn.q_proj"));
    CHECK_FALSE(finds(R"(layers\.[0-3]\..*_proj)", "model.xlayers.2.self_attn.q_proj"));
    CHECK(finds("q|v", "a.v"));
    CHECK_FALSE(finds("q|v", "a.qv"));
    CHECK(finds(R"(^model\.(encoder|decoder)\.q$)", "model.decoder.q"));
    CHECK_FALSE(finds(R"(^model\.(encoder|decoder)\.q$)", "x.model.decoder.q"));
    CHECK(finds(R"(q|^all)", "all"));
    CHECK_FALSE(finds(R"(q|^all)", "x.all"));
}

TEST_CASE("layer_pattern: each construct") {
    CHECK(matches("abc", "abc"));
    CHECK_FALSE(matches("abc", "ab"));
    CHECK_FALSE(matches("abc", "abcd"));
    CHECK(matches("", ""));
    CHECK_FALSE(matches("", "a"));
    CHECK(matches("a.c", "axc"));
    CHECK_FALSE(matches("a.c", "a\nc"));
    CHECK(matches("ab*c", "ac"));
    CHECK(matches("ab*c", "abbbc"));
    CHECK_FALSE(matches("ab+c", "ac"));
    CHECK(matches("ab+c", "abbc"));
    CHECK(matches("ab?c", "ac"));
    CHECK(matches("ab?c", "abc"));
    CHECK_FALSE(matches("ab?c", "abbc"));
    CHECK(matches("a.*?c", "abbc"));
    CHECK(matches("(ab|cd)+", "abcdab"));
    CHECK_FALSE(matches("(ab|cd)+", "abcda"));
    CHECK(matches("(?:a|b|)c", "c"));
    CHECK(matches("(a|b|c|d)", "c"));
    CHECK_FALSE(matches("(a|b|c|d)", "e"));
    CHECK(matches("a{3}", "aaa"));
    CHECK_FALSE(matches("a{3}", "aa"));
    CHECK(matches("a{1,3}b", "aaab"));
    CHECK_FALSE(matches("a{1,3}b", "aaaab"));
    CHECK_FALSE(matches("a{1,3}b", "b"));
    CHECK(matches("a{0,1}b", "b"));
    CHECK(matches("a{2,}b", "aaaab"));
    CHECK_FALSE(matches("a{2,}b", "ab"));
    CHECK(matches("[a-c_]+", "ab_c"));
    CHECK_FALSE(matches("[a-c_]+", "abd"));
    CHECK(matches("[^0-9]", "x"));
    CHECK_FALSE(matches("[^0-9]", "5"));
    CHECK(matches("[]x-]+", "]-x"));
    CHECK(matches(R"([\d.]+)", "1.2"));
    CHECK(matches(R"(\d\D\w\W)", "1a_."));
    CHECK_FALSE(matches(R"(\d)", "a"));
    CHECK(matches(R"(\.\[\\)", ".[\\"));
    CHECK_FALSE(matches(R"(\.)", "x"));
    CHECK(matches("^a$", "a"));
    CHECK_FALSE(matches("a^b", "ab"));
    CHECK_FALSE(matches("a$b", "ab"));
    CHECK(matches("(^a|b)$", "b"));
    CHECK(matches("(a*)*b", "aab"));
    CHECK(matches("((a?)?)*", "aaa"));
    CHECK(matches("\xc3\xa9", "\xc3\xa9"));
}

TEST_CASE("layer_pattern: what is not understood is refused, not guessed") {
    for (const char* pattern :
         {"(",    ")",      "a)",    "(a",    "[",       "[a",       "[b-a]", "*",
          "+a",   "?",      "a**",   "a*+",   "a{2}{3}", "{2}",      "a{",    "a{x}",
          "a{2",  "a{3,2}", "(?=a)", "(?!a)", "(?<=a)",  "(?P<n>a)", R"(\b)", R"(\1)",
          R"(\)", R"(\Z)",  "(*a)",  "^*",    "$+",      "^?a",      "a${2}"}) {
        CAPTURE(pattern);
        const auto refused = refuses("key: in", "it", [&] {
            peft_details::matching budget{"key: in: it"};
            (void)peft_details::layer_pattern(pattern, budget.where).matches("a", budget);
        });
        CHECK(refused);
    }
}

TEST_CASE("layer_pattern: brackets have to pair inside a pattern") {
    // Inside PEFT's `(.*\\.)?(pattern)$` each of these would be well-formed.
    for (const char* pattern : {")|q(", ")(", ")|b1(?:\\d"}) {
        CAPTURE(pattern);
        peft_details::matching budget{"key: it"};
        CHECK(
            refuses("key", "it", [&] { (void)peft_details::matches_layer(pattern, "q", budget); }));
    }
}

TEST_CASE("layer_pattern: no pattern takes long, or much memory") {
    // What takes a searching matcher exponential time.
    CHECK_FALSE(matches("(a|a)*(a|a)*(a|a)*b", std::string(2000, 'a')));
    CHECK_FALSE(matches("(a*)*(a*)*(a*)*b", std::string(2000, 'a')));
    CHECK(matches("(x+x+)+y", std::string(2000, 'x') + "y"));
    std::string nested = "a";
    for (int i = 0; i < 31; ++i)
        nested = "(" + nested + ")*";
    CHECK(matches(nested, "aaaa"));
    const auto is_refused = [](const std::string& pattern) {
        return refuses("key", "it", [&] {
            peft_details::matching budget{"key: it"};
            (void)peft_details::layer_pattern(pattern, budget.where).matches("a", budget);
        });
    };
    CHECK(is_refused(std::string(100000, '(')));
    CHECK(is_refused("((((a{255}){255}){255}){255}){255}"));
    CHECK(is_refused("a{999999999999999999999999}"));
    CHECK(is_refused(std::string(100000, 'a')));

    peft_details::matching budget{"key: it", 1000};
    CHECK(refuses("key", "it", [&] {
              for (int i = 0; i < 2000; ++i)
                  (void)peft_details::matches_layer("q", "model.q", budget);
          }).message.find("too many") != std::string::npos);
    peft_details::matching other{"key: it", 100000};
    CHECK_THROWS_AS((void)peft_details::matches_layer("(a|b|c)*d", std::string(100000, 'a'), other),
                    error);
}
