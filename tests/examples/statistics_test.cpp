#include "examples/cross_task/statistics.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

using namespace cross_task;

namespace {

/// Bits of the methods "a" and "b" after 8 words: [seed][language].
results two_methods(const std::vector<std::vector<double>>& a,
                    const std::vector<std::vector<double>>& b) {
    results made;
    made.test_languages = made.training_languages = {"pt", "da"};
    for (std::size_t s = 0; s < a.size(); ++s) {
        made.seeds.push_back(10 + s);
        for (std::size_t l = 0; l < 2; ++l) {
            const std::string& language = made.test_languages[l];
            made.adaptation.push_back({"a", 10 + s, 8, language, a[s][l], 24, 0.5});
            made.adaptation.push_back({"b", 10 + s, 8, language, b[s][l], 99, 1.0});
            made.fit.push_back({"a", 10 + s, language, a[s][l] + 1});
        }
    }
    return made;
}

results example() {
    return two_methods({{1.0, 2.0}, {2.0, 3.0}, {3.0, 4.0}}, {{1.5, 2.0}, {2.5, 4.0}, {2.0, 4.5}});
}

} // namespace

TEST_CASE("statistics: mean over languages, then mean and deviation over seeds") {
    const results of = example();
    const summary found = summarise(scores::of_adaptation(of, "a", 8));
    CHECK(found.of_seeds == std::vector<double>{1.5, 2.5, 3.5});
    CHECK(found.mean == doctest::Approx(2.5));
    REQUIRE(found.standard_deviation);
    CHECK(*found.standard_deviation == doctest::Approx(1.0));
    CHECK(summarise(scores::of_fit(of, "a")).mean == doctest::Approx(3.5));
}

TEST_CASE("statistics: differences are paired by seed and language") {
    const results of = example();
    const auto a = scores::of_adaptation(of, "a", 8);
    const auto b = scores::of_adaptation(of, "b", 8);
    const difference found = compare(a, b); // -0.25, -0.75, +0.25 for the seeds
    CHECK(found.mean == doctest::Approx(-0.25));
    REQUIRE(found.standard_error);
    CHECK(*found.standard_error == doctest::Approx(0.5 / std::sqrt(3.0)));
    CHECK(found.lower == 4); // one tie
    CHECK(found.pairs == 6);
    CHECK(compare(b, a).mean == doctest::Approx(0.25));
    CHECK(compare(b, a).lower == 1);
}

TEST_CASE("statistics: a single seed has no deviation") {
    const results of = two_methods({{1.0, 2.0}}, {{1.5, 2.0}});
    const auto a = scores::of_adaptation(of, "a", 8);
    const auto b = scores::of_adaptation(of, "b", 8);
    CHECK_FALSE(summarise(a).standard_deviation);
    CHECK_FALSE(compare(a, b).standard_error);
    CHECK(compare(a, b).mean == doctest::Approx(-0.25));
    CHECK_THROWS_AS(compare(a, scores::of_adaptation(example(), "a", 8)), std::runtime_error);
}

TEST_CASE("statistics: missing, surplus and undefined results are errors") {
    results of = example();
    CHECK_THROWS_WITH_AS(scores::of_adaptation(of, "a", 16),
                         "missing result: a, 16 words, seed 10, language pt", std::runtime_error);
    CHECK_THROWS_AS(scores::of_fit(of, "b"), std::runtime_error);

    of.adaptation.push_back(of.adaptation.front());
    CHECK_THROWS_WITH_AS(scores::of_adaptation(of, "a", 8),
                         "more than one result: a, 8 words, seed 10, language pt",
                         std::runtime_error);

    of = example();
    of.adaptation.front().seed = 77;
    CHECK_THROWS_AS(scores::of_adaptation(of, "a", 8), std::runtime_error);
    of = example();
    of.adaptation.front().language = "xx";
    CHECK_THROWS_AS(scores::of_adaptation(of, "a", 8), std::runtime_error);

    of = example();
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        of.adaptation.front().bits_per_character = bad;
        CHECK_THROWS_AS(scores::of_adaptation(of, "a", 8), std::runtime_error);
        CHECK_NOTHROW(scores::of_adaptation(of, "b", 8));
    }

    CHECK_THROWS_AS(scores::of_adaptation(results{}, "a", 8), std::runtime_error);
}

TEST_CASE("statistics: the cost of an adaptation") {
    results of = example();
    of.adaptation.front().seconds = 3.5;
    CHECK(adaptation_cost(of, "a", 8).trained_parameters == 24);
    CHECK(adaptation_cost(of, "a", 8).seconds == doctest::Approx(1.0));
    CHECK_THROWS_AS(adaptation_cost(of, "a", 9), std::runtime_error);
    of.adaptation.front().trained_parameters = 25;
    CHECK_THROWS_AS(adaptation_cost(of, "a", 8), std::runtime_error);
}

TEST_CASE("statistics: alignment is averaged over steps, then seeds; layers are apart") {
    results of;
    of.seeds = {1, 2};
    of.alignment = {{"a", 2, {10, 20}, {0.5, 0.7}, {{0.1, 0.3}, {0.2, 0.2}}},
                    {"a", 1, {10, 20}, {0.1, 0.3}, {{0.0, 0.0}, {0.4, 0.6}}}};
    const summary all = summarise(scores::of_alignment(of, "a"));
    CHECK(all.mean == doctest::Approx(0.4));
    CHECK(all.of_seeds[0] == doctest::Approx(0.2)); // the order of the seeds
    CHECK(summarise(scores::of_alignment(of, "a", 0)).mean == doctest::Approx(0.1));
    CHECK(summarise(scores::of_alignment(of, "a", 1)).mean == doctest::Approx(0.35));
    CHECK_THROWS_AS(scores::of_alignment(of, "b"), std::runtime_error);

    const results good = of;
    of.alignment.push_back(of.alignment.front());
    CHECK_THROWS_AS(scores::of_alignment(of, "a"), std::runtime_error);
    of = good;
    of.alignment.pop_back();
    CHECK_THROWS_AS(scores::of_alignment(of, "a"), std::runtime_error);
    of = good;
    of.alignment.front().overall.pop_back();
    CHECK_THROWS_AS(scores::of_alignment(of, "a"), std::runtime_error);
    of = good;
    of.alignment.front().overall.front() = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_AS(scores::of_alignment(of, "a"), std::runtime_error);
}
