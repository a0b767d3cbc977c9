#pragma once

#include <vector>

#include <doctest/doctest.h>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"

/// \file
/// These are the checks of a routed layer, whether one call computes it or several ranks do.

namespace mhr::test {

/// Every element type alone, and a mixture as hosts have it.
inline std::vector<layer_types> types_of_layers() {
    std::vector<layer_types> all;
    for (element_type type : all_element_types)
        all.push_back(all_of(type));
    all.push_back(of_16_bits);
    return all;
}

/// Checks that everything that is computed has the same bits.
inline void check_same(layer_problem& got, layer_problem& want) {
    CHECK(compare_bitwise(got.y.ref(), want.y.ref()));
    CHECK(compare_bitwise(got.d_x.ref(), want.d_x.ref()));
    CHECK(compare_bitwise(got.d_a.ref(), want.d_a.ref()));
    CHECK(compare_bitwise(got.d_b.ref(), want.d_b.ref()));
    if (got.plan.entries() > 0) CHECK(compare_bitwise(got.d_weights.ref(), want.d_weights.ref()));
}

/// Compares with the whole layer, computed in f64 from the same numbers: `before` are those from
/// before. As many products as the layer's are summed one after the other.
inline void check_near(layer_problem& got, layer_problem& before) {
    layer_problem want(got.s, got.plan, all_of(element_type::f64));
    layer_problem size(got.s, got.plan, all_of(element_type::f64));
    want.take_values_of(before);
    size.take_values_of(before);
    size.make_magnitudes();
    want.run();
    size.run();
    const layer_sizes& s = got.s;
    const auto terms = static_cast<double>(s.in() + s.out() + s.rows + 2 * s.modules +
                                           s.rank * (s.in_block + s.out_block));
    const auto check = [&](auto& result, auto& whole, auto& magnitudes, double roundings) {
        // Sums of f64 are as rough as those that they are compared with.
        CHECK(compare(result.ref(), values_as<double>(whole.ref()).view(),
                      values_as<double>(magnitudes.ref()).view(),
                      within(got.types.sums, terms + 8, roundings)));
    };
    check(got.y, want.y, size.y, 1);
    check(got.d_x, want.d_x, size.d_x, 1);
    check(got.d_a, want.d_a, size.d_a, 1);
    check(got.d_b, want.d_b, size.d_b, 1);
    if (got.plan.entries() == 0) return;
    // It is added to twice, for a and for b: the first sum is rounded to its type, and may be
    // larger.
    const double between = precision_of(got.types.gradients).epsilon;
    CHECK(compare(got.d_weights.ref(), values_as<double>(want.d_weights.ref()).view(),
                  values_as<double>(size.d_weights.ref()).view(),
                  error_bound{1, (terms + 8) * precision_of(got.types.sums).epsilon + between, 1}));
}

} // namespace mhr::test
