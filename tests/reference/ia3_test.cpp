#include <array>
#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/ia3.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

} // namespace

TEST_CASE("(IA)3 and its gradients, by hand") {
    const std::array<index_t, 3> entry{0, -1, 0};
    const tensor_view<const index_t, 1> entry_of_row(entry.data(), {3});
    tensor<double, 2> x({3, 2}), scales({1, 2}), y({3, 2});
    x.values() = {1, 2, 3, 4, 5, 6};
    scales.values() = {10, 0.5};
    y.values() = {9, 9, 9, 9, 9, 9}; // overwritten
    reference::ia3_forward(entry_of_row, x.const_view(), scales.const_view(), y.view());
    CHECK(y.values() == std::vector<double>{10, 1, 3, 4, 50, 3});

    tensor<double, 2> d_y({3, 2}), d_x({3, 2}), d_scales({1, 2});
    d_y.values() = {1, 2, 3, 4, 5, 6};
    d_x.values() = {1, 1, 1, 1, 1, 1};
    d_scales.values() = {100, 100};
    reference::ia3_backward(entry_of_row, x.const_view(), scales.const_view(), d_y.const_view(),
                            d_x.view(), d_scales.view());
    CHECK(d_x.values() == std::vector<double>{11, 2, 4, 5, 51, 4});
    CHECK(d_scales.values() == std::vector<double>{126, 140}); // 1 + 25 and 4 + 36
}

TEST_CASE("absent gradients of (IA)3 are skipped") {
    const index_t entry = 0;
    const tensor_view<const index_t, 1> entry_of_row(&entry, {1});
    const double three = 3;
    const double five = 5;
    const double seven = 7;
    const tensor_view<const double, 2> x(&three, {1, 1}), scales(&five, {1, 1}),
        d_y(&seven, {1, 1});
    double d_x = 0;
    double d_scales = 0;
    reference::ia3_backward<double>(entry_of_row, x, scales, d_y, {}, {});
    reference::ia3_backward<double>(entry_of_row, x, scales, d_y, {&d_x, {1, 1}}, {});
    reference::ia3_backward<double>(entry_of_row, x, scales, d_y, {}, {&d_scales, {1, 1}});
    CHECK(d_x == 35);
    CHECK(d_scales == 21);
}

TEST_CASE("gradients of (IA)3 against complex step") {
    const std::array<index_t, 6> entry{1, -1, 0, 1, 1, 0};
    const tensor_view<const index_t, 1> entry_of_row(entry.data(), {6});
    random_source random(29);
    tensor<double, 2> x({6, 5}), scales({2, 5}), d_y({6, 5});
    random.fill(x.view());
    random.fill(scales.view());
    random.fill(d_y.view());

    tensor<double, 2> d_x(x.extents()), d_scales(scales.extents());
    reference::ia3_backward(entry_of_row, x.const_view(), scales.const_view(), d_y.const_view(),
                            d_x.view(), d_scales.view());
    tensor<double, 2> x_magnitudes(x.extents()), scale_magnitudes(scales.extents());
    reference::ia3_backward(entry_of_row, magnitudes_as<double>(x.view()).const_view(),
                            magnitudes_as<double>(scales.view()).const_view(),
                            magnitudes_as<double>(d_y.view()).const_view(), x_magnitudes.view(),
                            scale_magnitudes.view());

    auto cx = copy_as<complex>(x.view());
    auto cs = copy_as<complex>(scales.view());
    const auto f = [&] {
        tensor<complex, 2> y({6, 5});
        reference::ia3_forward(entry_of_row, cx.const_view(), cs.const_view(), y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto step_x = complex_step_gradient(f, cx.view());
    const auto step_s = complex_step_gradient(f, cs.view());
    CHECK(compare(d_x.view(), step_x.view(), x_magnitudes.view(), within<double>(4)));
    CHECK(compare(d_scales.view(), step_s.view(), scale_magnitudes.view(), within<double>(4)));

    // Planted: the entries exchanged; the row of no task scaled.
    CHECK_FALSE(compare(d_scales.view().block(0, 0, 1), step_s.view().block(0, 1, 1),
                        scale_magnitudes.view().block(0, 0, 1), within<double>(4)));
    for (index_t i = 0; i < 5; ++i)
        d_x(1, i) *= scales(0, i);
    CHECK_FALSE(compare(d_x.view(), step_x.view(), x_magnitudes.view(), within<double>(4)));
}
