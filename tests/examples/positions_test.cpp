#include "examples/cross_task/positions.hpp"

#include <doctest/doctest.h>

#include <array>
#include <stdexcept>

using namespace cross_task;

TEST_CASE("positions: each letter and the final boundary, with padded contexts") {
    const position_list positions({"abcdefg", "za"});
    REQUIRE(positions.size() == 8 + 3);
    batch all;
    positions.slice(0, positions.size(), all);
    const std::array<std::array<int, 6>, 11> expected{{
        {0, 0, 0, 0, 0, 1},
        {0, 0, 0, 0, 1, 2},
        {0, 0, 0, 1, 2, 3},
        {0, 0, 1, 2, 3, 4},
        {0, 1, 2, 3, 4, 5},
        {1, 2, 3, 4, 5, 6},
        {2, 3, 4, 5, 6, 7},
        {3, 4, 5, 6, 7, 0},
        {0, 0, 0, 0, 0, 26},
        {0, 0, 0, 0, 26, 1},
        {0, 0, 0, 26, 1, 0},
    }};
    for (std::size_t row = 0; row < expected.size(); ++row) {
        const auto r = static_cast<Eigen::Index>(row);
        for (std::size_t c = 0; c < context_length; ++c)
            CHECK(all.contexts(r, static_cast<Eigen::Index>(c)) == expected[row][c]);
        CHECK(all.targets(r) == expected[row][context_length]);
    }
}

TEST_CASE("positions: a slice is a part of all positions") {
    const position_list positions({"one", "two", "three"});
    batch all;
    batch part;
    positions.slice(0, positions.size(), all);
    positions.slice(5, 4, part);
    REQUIRE(part.rows() == 4);
    CHECK((part.contexts == all.contexts.middleRows(5, 4)).all());
    CHECK((part.targets == all.targets.segment(5, 4)).all());
}

TEST_CASE("positions: samples fill the given rows alone and reach every position equally") {
    const position_list positions({"abc"}); // targets 1, 2, 3, 0
    random_engine random(1);
    batch samples(4002);
    samples.targets.setConstant(-1);
    positions.sample(random, samples, 1, 4000);
    CHECK(samples.targets(0) == -1);
    CHECK(samples.targets(4001) == -1);
    for (int symbol = 0; symbol < 4; ++symbol) {
        const auto count = (samples.targets == symbol).count();
        CHECK(count > 850);
        CHECK(count < 1150);
    }

    batch again(100);
    batch same(100);
    random_engine first(7);
    random_engine second(7);
    positions.sample(first, again);
    positions.sample(second, same);
    CHECK((again.targets == same.targets).all());
}

TEST_CASE("positions: only letters a-z, and no samples of nothing") {
    CHECK_THROWS_AS(position_list({"abc", "Abc"}), std::invalid_argument);
    CHECK_THROWS_AS(position_list({"a b"}), std::invalid_argument);
    const position_list none;
    CHECK(none.size() == 0);
    CHECK(position_list(std::vector<std::string>{}).size() == 0);
    random_engine random(1);
    batch samples(1);
    CHECK_THROWS_AS(none.sample(random, samples), std::invalid_argument);
}
