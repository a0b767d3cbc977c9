#include <string>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/rows/row_weights.hpp>

#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;
using kind = reference::row_weights_kind;

/// Heads are rows to the oracle.
template <class T, class Void>
tensor<T, 2> as_rows(const basic_tensor_ref<Void, 3>& of) {
    tensor<T, 2> result({of.extent(0) * of.extent(1), of.extent(2)});
    result.values() = values_as<T>(of).values();
    return result;
}
template <class T>
tensor<T, 3> as_heads(const tensor<T, 2>& of, const std::array<index_t, 3>& extents) {
    tensor<T, 3> result(extents);
    result.values() = of.values();
    return result;
}

template <class Rule>
void check(const Rule& rule, const reference::row_weights_options<wide>& options, element_type type,
           layout order = layout::row_major, executor_ref executor = {}, index_t rows = 41) {
    random_guarded<3> logits(type, {rows, 2, 7}, 1, order, -2, 2);
    for (index_t row : {3, 4}) // a tie, and a zero
        for (index_t m : {1, 2, 5})
            set_element(logits.ref(), {row, 1, m}, row == 3 ? 1.5 : 0);
    random_guarded<3> d_weights(type, logits.extents(), 2, order);
    random_guarded<3> d_logits(type, logits.extents(), 3, order);
    guarded_tensor<3> weights(type, logits.extents(), order);
    const auto l = as_rows<wide>(logits.ref()), d_w = as_rows<wide>(d_weights.ref());
    tensor<wide, 2> want(l.extents());
    auto want_d = as_rows<wide>(d_logits.ref());
    reference::row_weights_forward(options, l.const_view(), want.view());
    reference::row_weights_backward(options, l.const_view(), d_w.const_view(), want_d.view());
    row_weights_forward(executor, logits, rule, weights);
    row_weights_backward(executor, logits, rule, d_weights, d_logits);
    const element_type sums = sums_of(type, type);
    check_near(weights, as_heads(want, logits.extents()), sums, 32);
    check_near(d_logits, as_heads(want_d, logits.extents()), sums, 64);
}

} // namespace

TEST_CASE("rules of rows agree with the oracle, forward and backward") {
    const auto factors = [] {
        tensor<wide, 1> f({7});
        for (index_t m = 0; m < 7; ++m)
            f(m) = static_cast<wide>(m - 3) / 2;
        return f;
    }();
    const auto f32_factors = copy_as<float>(factors.view());
    const const_tensor_ref<1> given = f32_factors.view();
    for (element_type type : all_element_types)
        for (layout order : all_layouts)
            for (index_t k : {1, 2, 7}) {
                CAPTURE(std::string(name_of(type)));
                CAPTURE(name_of(order));
                CAPTURE(k);
                const auto all = [&](const auto& rule, bool magnitude, wide temperature, kind of,
                                     bool scaled = false) {
                    reference::row_weights_options<wide> o{magnitude, temperature, k, of};
                    if (scaled) {
                        o.factor = -1.75L;
                        o.factors = factors.view();
                    }
                    check(rule, o, type, order);
                };
                all(routing_rule{tempered_gate{magnitude_gate{}, 0.5}, softmax_normaliser{k}}, true,
                    0.5L, kind::softmax_of_kept);
                all(routing_rule{identity_gate{}, softmax_normaliser{k}}, false, 1,
                    kind::softmax_of_kept);
                all(routing_rule{tempered_gate{identity_gate{}, 2}, softmax_of_all_normaliser{k}},
                    false, 2, kind::softmax_of_all);
                all(routing_rule{identity_gate{}, kept_normaliser{k}}, false, 1, kind::kept);
                all(routing_rule{identity_gate{}, softmax_of_nonzero_normaliser{k}}, false, 1,
                    kind::softmax_of_nonzero);
                all(routing_rule{identity_gate{},
                                 scaled_normaliser{kept_normaliser{k}, -1.75, given}},
                    false, 1, kind::kept, true);
                all(routing_rule{magnitude_gate{},
                                 scaled_normaliser{softmax_of_all_normaliser{k}, -1.75, given}},
                    true, 1, kind::softmax_of_all, true);
            }
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        check(routing_rule{identity_gate{}, softmax_of_nonzero_normaliser{2}},
              {false, 1, 2, kind::softmax_of_nonzero}, element_type::f32, layout::row_major,
              executor, 301);
    });
}

TEST_CASE("gates of each row and annealing are those of the router") {
    random_guarded<3> logits(element_type::f32, {4, 1, 3}, 1),
        noise(element_type::f32, {4, 1, 3}, 2);
    guarded_tensor<3> weights(element_type::f32, {4, 1, 3}), want(element_type::f32, {4, 1, 3});
    const routing_rule rule{noisy_gate{sigmoid_gate{}, noise.const_ref()}, sum_normaliser{}, 0.5};
    row_weights_forward({}, logits, rule, weights);
    const std::array<int, 4> tasks{0, 1, 2, 3};
    router_forward({}, logits.const_ref(), tensor_view<const int, 1>(tasks.data(), {4}), rule,
                   want.ref());
    CHECK(compare_bitwise(weights.ref(), want.ref()));
}

TEST_CASE("bad arguments of row weights are refused by name") {
    random_guarded<3> logits(element_type::f32, {4, 2, 3}, 1);
    guarded_tensor<3> weights(element_type::f32, {4, 2, 3}), d(element_type::f32, {4, 2, 3});
    const routing_rule rule{identity_gate{}, softmax_normaliser{2}};
    check_bad_input("row_weights_forward", "logits", logits.const_ref(), {0, 1, 2},
                    [&](const auto& bad) { row_weights_forward({}, bad, rule, weights); });
    check_bad_output("row_weights_forward", "weights", weights.ref(), {},
                     [&](const auto& bad) { row_weights_forward({}, logits, rule, bad); });
    check_bad_input("row_weights_backward", "d_weights", weights.const_ref(), {},
                    [&](const auto& bad) { row_weights_backward({}, logits, rule, bad, d); });
    check_bad_output("row_weights_backward", "d_logits", d.ref(), {}, [&](const auto& bad) {
        row_weights_backward({}, logits, rule, weights, bad);
    });
    const auto wrong = [&](const char* argument, const auto& other) {
        CHECK(refuses(
            "row_weights_forward", argument,
            [&] { row_weights_forward({}, logits, other, weights); }, weights));
        CHECK(refuses(
            "row_weights_backward", argument,
            [&] { row_weights_backward({}, logits, other, weights, d); }, d));
    };
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (double temperature : {0.0, -1.0, 1e300, 1e-300, nan})
        wrong("gate.temperature", routing_rule{tempered_gate{identity_gate{}, temperature}});
    for (double annealing : {-0.1, 1.1, nan})
        wrong("rule.annealing", routing_rule{identity_gate{}, sum_normaliser{}, annealing});
    wrong("normaliser.kept", routing_rule{identity_gate{}, kept_normaliser{0}});
    wrong("normaliser.kept", routing_rule{identity_gate{}, softmax_of_all_normaliser{0}});
    wrong("normaliser.kept", routing_rule{identity_gate{}, softmax_of_nonzero_normaliser{-1}});
    wrong("normaliser.factor",
          routing_rule{identity_gate{}, scaled_normaliser{kept_normaliser{}, nan}});
    const float number = 1;
    wrong("normaliser.factors",
          routing_rule{identity_gate{},
                       scaled_normaliser{kept_normaliser{}, 1, const_tensor_ref<1>(&number, {1})}});
}
