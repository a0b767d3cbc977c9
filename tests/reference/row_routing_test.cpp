#include <complex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

/// Checks a gradient, and that a slightly wrong one would be noticed.
template <std::size_t Rank>
void check_gradient(tensor<double, Rank> got, const tensor<double, Rank>& want) {
    tensor<double, Rank> ones(want.extents());
    for (double& one : ones.values())
        one = 1;
    const auto check = [&] {
        return bool(
            compare(got.const_view(), want.const_view(), ones.const_view(), {16, 0x1p-52, 16}));
    };
    CHECK(check());
    got.values()[got.values().size() / 2] += 1e-9;
    CHECK_FALSE(check());
}

template <std::size_t Rank>
tensor<double, Rank> random_tensor(const std::array<index_t, Rank>& extents, std::uint64_t seed) {
    tensor<double, Rank> result(extents);
    random_source(seed).fill(result.view());
    return result;
}

} // namespace

TEST_CASE("the row gate and its gradients, by hand") {
    tensor<double, 2> x({1, 2}), gate({2, 2}), logits({1, 2});
    tensor<double, 1> bias({2});
    x.values() = {2, 3};
    gate.values() = {1, 10, 100, 1000};
    bias.values() = {0.5, 0.25};
    reference::row_gate_forward(x.const_view(), gate.const_view(), bias.const_view(),
                                logits.view());
    CHECK(logits.values() == std::vector<double>{302.5, 3020.25});
    tensor<double, 2> d_logits({1, 2}), d_x({1, 2}), d_gate({2, 2});
    tensor<double, 1> d_bias({2});
    d_logits.values() = {1, -2};
    reference::row_gate_backward(x.const_view(), gate.const_view(), d_logits.const_view(),
                                 d_x.view(), d_gate.view(), d_bias.view());
    CHECK(d_x.values() == std::vector<double>{-19, -1900});
    CHECK(d_gate.values() == std::vector<double>{2, -4, 3, -6});
    CHECK(d_bias.values() == std::vector<double>{1, -2});
}

TEST_CASE("the gradients of norms agree with complex steps") {
    for (const bool is_layer : {true, false}) {
        CAPTURE(is_layer);
        auto x = random_tensor<2>({3, 7}, 1);
        const auto d_y = random_tensor<2>({3, 7}, 2);
        auto z = copy_as<complex>(x.view());
        tensor<complex, 2> y(z.extents());
        const auto want = complex_step_gradient(
            [&] {
                reference::row_norm_forward(is_layer, z.const_view(), y.view());
                return contract<complex>(y.view(), d_y.view());
            },
            z.view());
        tensor<double, 2> got(x.extents());
        reference::row_norm_backward(is_layer, x.const_view(), d_y.const_view(), got.view());
        check_gradient(got, want);
    }
    // A layer norm has mean 0 and about variance 1; a unit norm has length 1.
    const auto x = random_tensor<2>({1, 5}, 3);
    tensor<double, 2> y(x.extents());
    reference::row_norm_forward(true, x.const_view(), y.view());
    double sum = 0, squares = 0;
    for (double value : y.values())
        sum += value, squares += value * value;
    CHECK(std::abs(sum) < 1e-14);
    CHECK(std::abs(squares - 5) < 1e-3);
}

TEST_CASE("the gradients of row weights agree with complex steps") {
    using kind = reference::row_weights_kind;
    const auto factors = random_tensor<1>({6}, 4);
    for (const kind of :
         {kind::kept, kind::softmax_of_kept, kind::softmax_of_all, kind::softmax_of_nonzero})
        for (const bool magnitude : {false, true})
            for (const index_t kept : {1, 2, 6}) {
                CAPTURE(static_cast<int>(of));
                CAPTURE(magnitude);
                CAPTURE(kept);
                auto logits = random_tensor<2>({4, 6}, 5);
                logits(1, 2) = logits(1, 3) = 0;
                const auto d_weights = random_tensor<2>({4, 6}, 6);
                const auto options = [&](auto zero, const auto& f) {
                    using S = decltype(zero);
                    reference::row_weights_options<S> o{magnitude, S(0.75), kept, of, S(-1.5)};
                    o.factors = f.view();
                    return o;
                };
                auto z = copy_as<complex>(logits.view());
                const auto complex_factors = copy_as<complex>(factors.view());
                tensor<complex, 2> w(z.extents());
                const auto want = complex_step_gradient(
                    [&] {
                        reference::row_weights_forward(options(complex(), complex_factors),
                                                       z.const_view(), w.view());
                        return contract<complex>(w.view(), d_weights.view());
                    },
                    z.view());
                tensor<double, 2> got(logits.extents());
                reference::row_weights_backward(options(0.0, factors), logits.const_view(),
                                                d_weights.const_view(), got.view());
                check_gradient(got, want);
            }
}

TEST_CASE("row weights, by hand") {
    using kind = reference::row_weights_kind;
    tensor<double, 2> logits({1, 3}), weights({1, 3});
    logits.values() = {-3, 1, 2};
    const auto run = [&](const reference::row_weights_options<double>& options) {
        reference::row_weights_forward(options, logits.const_view(), weights.view());
        return weights.values();
    };
    CHECK(run({false, 1, 2, kind::kept, 2}) == std::vector<double>{0, 2, 4});
    CHECK(run({true, 1, 2, kind::kept, 1}) == std::vector<double>{3, 0, 2});
    const double e = std::exp(1.0);
    CHECK(run({false, 1, 2, kind::softmax_of_kept, 1})[1] == doctest::Approx(1 / (1 + e)));
    CHECK(run({false, 1, 1, kind::softmax_of_all, 1})[2] ==
          doctest::Approx(e * e / (std::exp(-3.0) + e + e * e)));
    CHECK(run({false, 1, 1, kind::softmax_of_all, 1})[1] == 0);
    logits.values() = {-3, 0, -1};
    CHECK(run({false, 1, 2, kind::softmax_of_nonzero, 1}) == std::vector<double>{0, 0, 1});
}

TEST_CASE("the load-balancing loss and its gradient, by hand") {
    tensor<double, 2> p({2, 3}), w({2, 3}), d_p({2, 3});
    p.values() = {0.5, 0.25, 0.25, 0.5, 0.5, 0};
    w.values() = {1, 0, 0, 1, 0.5, 0}; // shares 1, 1/2, 0; means 1/2, 3/8, 1/8
    CHECK(reference::load_balancing_loss(p.const_view(), w.const_view()) ==
          doctest::Approx(3 * (0.5 + 0.5 * 0.375)));
    reference::load_balancing_loss_backward(w.const_view(), 2.0, d_p.view());
    CHECK(d_p.values() == std::vector<double>{3, 1.5, 0, 3, 1.5, 0});
}

TEST_CASE("pooling and its gradient, by hand") {
    const std::vector<index_t> entries{1, 0, -1, 1};
    const tensor_view<const index_t, 1> of_rows(entries.data(), {4});
    tensor<double, 2> x({4, 1}), pooled({2, 1}), d_x({4, 1});
    x.values() = {1, 2, 50, 4};
    reference::pool_rows_forward(of_rows, x.const_view(), pooled.view());
    CHECK(pooled.values() == std::vector<double>{2, 2.5});
    reference::pool_rows_backward(of_rows, pooled.const_view(), d_x.view());
    CHECK(d_x.values() == std::vector<double>{1.25, 2, 0, 1.25});
}
