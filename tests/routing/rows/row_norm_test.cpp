#include <string>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>
#include <mhr/routing/rows/row_norm.hpp>

#include "support/row_checks.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;

void check(row_norm norm, element_type type, index_t rows, index_t features, layout order) {
    random_guarded<2> x(type, {rows, features}, 1, order, -1, 3);
    random_guarded<2> d_y(type, x.extents(), 2, order), d_x(type, x.extents(), 3, order);
    guarded_tensor<2> y(type, x.extents(), order);
    const bool is_layer = norm == row_norm::layer;
    const auto wx = values_as<wide>(x.ref()), wd = values_as<wide>(d_y.ref());
    tensor<wide, 2> want(x.extents());
    auto want_d = values_as<wide>(d_x.ref());
    reference::row_norm_forward(is_layer, wx.const_view(), want.view());
    reference::row_norm_backward(is_layer, wx.const_view(), wd.const_view(), want_d.view());
    row_norm_forward({}, norm, x, y);
    row_norm_backward({}, norm, x, d_y, d_x);
    const double roundings = 16 + static_cast<double>(features) / 8;
    check_near(y, want, sums_of(type, type), roundings);
    check_near(d_x, want_d, sums_of(type, type), 8 * roundings);
    // In place.
    row_norm_forward({}, norm, x, x);
    CHECK(compare_bitwise(x.ref(), y.ref()));
}

} // namespace

TEST_CASE("norms of rows agree with the oracle, forward and backward") {
    for (row_norm norm : {row_norm::layer, row_norm::unit})
        for (element_type type : all_element_types)
            for (layout order : all_layouts)
                for (index_t features : {2, 15, 17, 513, 1024}) {
                    CAPTURE(static_cast<int>(norm));
                    CAPTURE(std::string(name_of(type)));
                    CAPTURE(name_of(order));
                    CAPTURE(features);
                    check(norm, type, 3, features, order);
                }
}

TEST_CASE("rows of zeros have a norm, and short rows a constant divisor") {
    guarded_tensor<2> x(element_type::f64, {2, 3}), y(element_type::f64, {2, 3}),
        d_y(element_type::f64, {2, 3}), d_x(element_type::f64, {2, 3});
    for (guarded_tensor<2>* tensor : {&x, &d_x})
        tensor->fill(0);
    d_y.fill(1);
    set_element(x.ref(), {1, 0}, 1e-9);
    row_norm_forward({}, row_norm::unit, x, y);
    CHECK(element(y.ref(), {0, 0}) == 0);
    CHECK(element(y.ref(), {1, 0}) == doctest::Approx(0.1));
    row_norm_backward({}, row_norm::unit, x, d_y, d_x);
    CHECK(element(d_x.ref(), {0, 1}) == doctest::Approx(1e8));
    CHECK(element(d_x.ref(), {1, 0}) == doctest::Approx(1e8));
    row_norm_forward({}, row_norm::layer, x, y);
    CHECK(element(y.ref(), {0, 2}) == 0);
}

TEST_CASE("bad arguments of norms are refused by name") {
    random_guarded<2> x(element_type::f32, {3, 4}, 1), d_y(element_type::f32, {3, 4}, 2);
    guarded_tensor<2> y(element_type::f32, {3, 4}), d_x(element_type::f32, {3, 4});
    constexpr row_norm norm = row_norm::unit;
    check_bad_input("row_norm_forward", "x", x.const_ref(), {0, 1},
                    [&](const auto& bad) { row_norm_forward({}, norm, bad, y); });
    check_bad_output("row_norm_forward", "y", y.ref(), {},
                     [&](const auto& bad) { row_norm_forward({}, norm, x, bad); });
    check_bad_input("row_norm_backward", "d_y", d_y.const_ref(), {},
                    [&](const auto& bad) { row_norm_backward({}, norm, x, bad, d_x); });
    check_bad_output("row_norm_backward", "d_x", d_x.ref(), {},
                     [&](const auto& bad) { row_norm_backward({}, norm, x, d_y, bad); });
    CHECK(refuses(
        "row_norm_forward", "norm", [&] { row_norm_forward({}, static_cast<row_norm>(7), x, y); },
        y));
    const tensor_ref<2> none(nullptr, element_type::f32, {0, 4});
    CHECK_NOTHROW(row_norm_forward({}, norm, none, none));
}
