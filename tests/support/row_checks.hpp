#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <doctest/doctest.h>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// What the tests of routers of rows and of combined adapters have in common.

namespace mhr::test {

/// A guarded tensor of random numbers.
template <std::size_t Rank>
struct random_guarded : guarded_tensor<Rank> {
    random_guarded(element_type type, const std::array<index_t, Rank>& extents, std::uint64_t seed,
                   layout order = layout::row_major, double low = -1, double high = 1)
        : guarded_tensor<Rank>(type, extents, order) {
        this->fill(random_source(seed), low, high);
    }
};

/// Checks a result whose terms are of size 1, about, and that it stayed in its memory; a gradient
/// was rounded several times.
template <std::size_t Rank, class S>
void check_near(guarded_tensor<Rank>& got, const tensor<S, Rank>& want, element_type sums,
                double roundings) {
    tensor<S, Rank> sizes(want.extents());
    for (std::size_t i = 0; i < sizes.values().size(); ++i)
        sizes.values()[i] = 1 + std::abs(want.values()[i]);
    CHECK(compare(got.ref(), want.view(), sizes.view(), within(sums, roundings, 2)));
    CHECK(got.intact());
}

/// Checks that every bad form of an input, or of an output, is refused by name.
/// @{
template <class Void, std::size_t Rank, class Call>
void check_bad_input(const char* function, const char* argument,
                     const basic_tensor_ref<Void, Rank>& good, const std::set<std::size_t>& free,
                     Call&& call) {
    for (const auto& bad : bad_as_input(good, free)) {
        CAPTURE(argument);
        CAPTURE(bad.what);
        CHECK(refuses(function, argument, [&] { call(bad.ref); }));
    }
}
template <std::size_t Rank, class Call>
void check_bad_output(const char* function, const char* argument, const tensor_ref<Rank>& good,
                      const std::set<std::size_t>& free, Call&& call) {
    for (const auto& bad : bad_as_output(good, free)) {
        CAPTURE(argument);
        CAPTURE(bad.what);
        CHECK(refuses(function, argument, [&] { call(bad.ref); }));
    }
}
/// @}

} // namespace mhr::test
