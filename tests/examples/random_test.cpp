#include "examples/cross_task/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

using cross_task::random_engine;

TEST_CASE("random: the bits are those of the standard's mt19937_64") {
    random_engine random(5489);
    for (int i = 1; i < 10000; ++i)
        random.bits();
    CHECK(random.bits() == 9981545732273789042U); // [rand.predef]
}

TEST_CASE("random: uniform numbers are in [0, 1) with mean 1/2") {
    random_engine random(1);
    double sum = 0.0;
    for (int i = 0; i < 100000; ++i) {
        const double value = random.uniform();
        REQUIRE(value >= 0.0);
        REQUIRE(value < 1.0);
        sum += value;
    }
    CHECK(sum / 100000 == doctest::Approx(0.5).epsilon(0.01));
    const double value = random.uniform(-3.0, -2.0);
    CHECK(value >= -3.0);
    CHECK(value < -2.0);
}

TEST_CASE("random: integers are below the count and equally likely") {
    random_engine random(2);
    std::array<int, 7> seen{};
    for (int i = 0; i < 70000; ++i)
        ++seen.at(random.integer(7));
    for (const int count : seen)
        CHECK(std::abs(count - 10000) < 500);
    CHECK(random.integer(1) == 0);
    CHECK_THROWS_AS(random.integer(0), std::invalid_argument);

    // With a remainder alone, the lower half of this range would be twice as likely as the rest.
    const std::uint64_t count = (std::uint64_t{1} << 63) + (std::uint64_t{1} << 62);
    int low = 0;
    for (int i = 0; i < 30000; ++i)
        low += random.integer(count) < count / 3 ? 1 : 0;
    CHECK(std::abs(low - 10000) < 500);
}

TEST_CASE("random: normal numbers have mean 0 and variance 1") {
    random_engine random(3);
    double sum = 0.0;
    double squares = 0.0;
    const int count = 100000;
    for (int i = 0; i < count; ++i) {
        const double value = random.normal();
        REQUIRE(std::isfinite(value));
        sum += value;
        squares += value * value;
    }
    CHECK(std::abs(sum / count) < 0.02);
    CHECK(squares / count == doctest::Approx(1.0).epsilon(0.02));
}

TEST_CASE("random: a shuffle keeps every item and is the same for the same seed") {
    std::vector<int> first(100);
    std::iota(first.begin(), first.end(), 0);
    const std::vector<int> ordered = first;
    std::vector<int> second = first;
    random_engine(4).shuffle(first);
    random_engine(4).shuffle(second);
    CHECK(first == second);
    CHECK(first != ordered);
    std::sort(first.begin(), first.end());
    CHECK(first == ordered);

    std::vector<int> empty;
    random_engine(4).shuffle(empty);
    CHECK(empty.empty());
}
