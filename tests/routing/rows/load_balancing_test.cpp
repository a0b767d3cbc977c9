#include <string>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>
#include <mhr/routing/rows/load_balancing.hpp>

#include "support/row_checks.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("the load-balancing loss agrees with the oracle, forward and backward") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            random_guarded<2> p(type, {13, 5}, 1, order, 0, 1), w(type, {13, 5}, 2, order);
            random_guarded<2> d_p(type, {13, 5}, 3, order);
            transform_elements(w.ref(), [](double x) { return x < 0.2 ? 0 : x; });
            const auto probabilities = values_as<long double>(p.ref());
            const auto weights = values_as<long double>(w.ref());
            const auto want =
                reference::load_balancing_loss(probabilities.const_view(), weights.const_view());
            CHECK(std::abs(static_cast<long double>(load_balancing_loss_forward(p, w)) - want) <
                  1e-14L);
            auto want_d = values_as<long double>(d_p.ref());
            reference::load_balancing_loss_backward(weights.const_view(), -0.5L, want_d.view());
            load_balancing_loss_backward(w, -0.5, d_p);
            check_near(d_p, want_d, element_type::f64, 8);
        }
}

TEST_CASE("the loss is k where k modules of each row are used alike, and 0 of no rows") {
    guarded_tensor<2> p(element_type::f64, {4, 4}), w(element_type::f64, {4, 4});
    p.fill(0.25);
    w.fill(0);
    for (index_t row = 0; row < 4; ++row)
        for (index_t next : {0, 1})
            set_element(w.ref(), {row, (row + next) % 4}, 0.5);
    CHECK(load_balancing_loss_forward(p, w) == doctest::Approx(2));
    guarded_tensor<2> none(element_type::f64, {0, 4});
    CHECK(load_balancing_loss_forward(none, none) == 0);
    CHECK_NOTHROW(load_balancing_loss_backward(none, 1, none));
}

TEST_CASE("bad arguments of the loss are refused by name") {
    random_guarded<2> p(element_type::f32, {3, 4}, 1), w(element_type::f32, {3, 4}, 2);
    check_bad_input("load_balancing_loss_forward", "probabilities", p.const_ref(), {0, 1},
                    [&](const auto& bad) { load_balancing_loss_forward(bad, w); });
    check_bad_input("load_balancing_loss_forward", "weights", w.const_ref(), {},
                    [&](const auto& bad) { load_balancing_loss_forward(p, bad); });
    check_bad_output("load_balancing_loss_backward", "d_probabilities", p.ref(), {},
                     [&](const auto& bad) { load_balancing_loss_backward(w, 1, bad); });
}
