// By hand and at the edges; the rules against the oracle are in row_weights_test.cpp.

#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/rows/row_rules.hpp>

#include "support/part_checks.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr gate_position place{0, 0, 0, 1};

template <class Normaliser>
std::vector<double> weights_of(const Normaliser& normaliser, const std::vector<double>& s) {
    std::vector<double> w(s.size(), -99);
    normaliser.template forward<double>(
        {1, static_cast<index_t>(s.size())},
        [&](index_t m) { return s[static_cast<std::size_t>(m)]; },
        [&](index_t m, double weight) { w[static_cast<std::size_t>(m)] = weight; });
    return w;
}

/// Modules that get no gradient keep -99.
template <class Normaliser>
std::vector<double> gradient_of(const Normaliser& normaliser, const std::vector<double>& s,
                                const std::vector<double>& d_w) {
    std::vector<double> d(s.size(), -99);
    normaliser.template backward<double>(
        {1, static_cast<index_t>(s.size())},
        [&](index_t m) { return s[static_cast<std::size_t>(m)]; },
        [&](index_t m) { return d_w[static_cast<std::size_t>(m)]; },
        [&](index_t m, double d_s) { d[static_cast<std::size_t>(m)] = d_s; });
    return d;
}

} // namespace

TEST_CASE("gates of rows") {
    CHECK(magnitude_gate{}.value(-2.5, place) == 2.5);
    CHECK(magnitude_gate{}.slope(-2.5, place) == -1);
    CHECK(magnitude_gate{}.slope(3.0F, place) == 1);
    CHECK(magnitude_gate{}.slope(0.0, place) == 0);
    const tempered_gate gate{magnitude_gate{}, 4};
    CHECK(gate.value(-2.0, place) == 0.5);
    CHECK(gate.slope(-2.0, place) == -0.25);
}

TEST_CASE("what is not kept gets no weight and no gradient") {
    CHECK(weights_of(kept_normaliser{2}, {-1, 3, 0, 3}) == std::vector<double>{0, 3, 0, 3});
    CHECK(gradient_of(kept_normaliser{1}, {-1, 3, 0, 3}, {1, 2, 3, 4}) ==
          std::vector<double>{-99, 2, -99, -99});
    CHECK(weights_of(kept_normaliser{}, {-1, 3}) == std::vector<double>{-1, 3});
    // In a softmax over all, modules that are not kept have a gradient.
    CHECK(weights_of(softmax_of_all_normaliser{1}, {1, 1}) == std::vector<double>{0.5, 0});
    CHECK(gradient_of(softmax_of_all_normaliser{1}, {1, 1}, {1, 100}) ==
          std::vector<double>{0.25, -0.25});
}

TEST_CASE("zeros are dropped from a softmax of what is not 0") {
    const softmax_of_nonzero_normaliser two{2};
    CHECK(weights_of(two, {0, 0, 0}) == std::vector<double>{0, 0, 0});
    CHECK(gradient_of(two, {0, 0, 0}, {1, 2, 3}) == std::vector<double>{-99, -99, -99});
    CHECK(weights_of(two, {-5, 0, -3}) == std::vector<double>{0, 0, 1}); // 0 and -3 are the largest
    CHECK(weights_of(two, {2, 0, 2}) == std::vector<double>{0.5, 0, 0.5});
    CHECK(weights_of(two, {-1700, -1900, -1800})[0] == 1); // no overflow
    CHECK(gradient_of(two, {2, 0, 2}, {1, 50, 3}) == std::vector<double>{-0.5, -99, 0.5});
}

TEST_CASE("scaled weights and their gradients") {
    const float list[] = {2, -1};
    const scaled_normaliser scaled{kept_normaliser{}, 3, const_tensor_ref<1>(list, {2})};
    CHECK(weights_of(scaled, {1, 10}) == std::vector<double>{6, -30});
    CHECK(gradient_of(scaled, {1, 10}, {1, 1}) == std::vector<double>{6, -3});
    CHECK(weights_of(scaled_normaliser{kept_normaliser{1}, -2}, {1, 10}) ==
          std::vector<double>{0, -20});
    CHECK_NOTHROW(check_part(scaled, 1, 2));
}
