// Arguments at the ends of what they may be: weights of 0, scales of 0 and beyond, numbers at the
// ends of bf16 and f16, in whole vectors and in what is left over.

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/ia3.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/merge.hpp>

#include "support/comparison.hpp"
#include "support/fast_math.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using plain = routed_of<float>;
using bf16 = Eigen::bfloat16;
using half = Eigen::half;

constexpr routed_sizes sizes{30, 2, 3, 4, 9, 21, 5};

template <class Buffer>
auto copy_of(Buffer& buffer) {
    using T = typename decltype(buffer.view())::value_type;
    return copy_as<T>(buffer.view());
}

/// True if equal as numbers: 0 may have become -0 or the reverse.
template <class T, std::size_t Rank>
bool equal(const tensor_view<T, Rank>& got, const tensor<T, Rank>& want) {
    bool result = want.view().size() > 0;
    for_each_position(want.extents(), [&](const position<Rank>& at) {
        result = result && detail::is_exactly(element(got, at), element(want.view(), at));
    });
    return result;
}

/// Forward and backward leave everything as it is.
template <class T>
void check_nothing_changes(routed_problem<T>& p) {
    const auto y = copy_of(p.y);
    const auto d_x = copy_of(p.d_x);
    const auto d_a = copy_of(p.d_a);
    const auto d_b = copy_of(p.d_b);
    const auto d_weights = copy_of(p.d_weights);
    p.forward();
    CHECK(equal(p.y.view(), y));
    p.backward();
    CHECK(equal(p.d_x.view(), d_x));
    CHECK(equal(p.d_a.view(), d_a));
    CHECK(equal(p.d_b.view(), d_b));
    CHECK(equal(p.d_weights.view(), d_weights));
    CHECK(p.intact());
}

/// x, to which scale x is added, and what the storage type makes of it.
struct rounding {
    double y, x, scale, want;
};

/// Through LoRA (its vectors and tails), (IA)3's backward and merging, `count` times beside each
/// other: each adds scale x to y.
template <class T>
void check_rounding(const rounding& c, index_t count) {
    CAPTURE(c.y);
    CAPTURE(c.x);
    CAPTURE(c.scale);
    CAPTURE(count);
    const T want = store<T>(c.want);
    const T x = store<T>(c.x);
    const T one(1.F);
    const auto all_want = [&](const tensor<T, 2>& y) {
        for (const T& value : y.values())
            if (!(value == want)) return false;
        return y.view().size() > 0;
    };
    const auto filled = [](const std::array<index_t, 2>& extents, T value) {
        tensor<T, 2> result(extents);
        std::fill(result.values().begin(), result.values().end(), value);
        return result;
    };
    batch_plan plan;
    plan.assign_single_task(3);
    const auto inputs = filled({3, 1}, x);
    const auto a = filled({1, 1}, one);
    const auto b = filled({1, count}, one);
    auto y = filled({3, count}, store<T>(c.y));
    tensor<float, 2> hidden({3, 1});
    const auto adapter = as_batch(lora<const T>{a.view(), b.view()});
    lora_forward(serial_executor{}, plan, inputs.view(), adapter, c.scale, y.view(), hidden.view());
    CHECK(all_want(y));

    // d_x of a layer turned round: [count] features in, one out.
    const auto d_y = filled({3, 1}, x);
    const auto wide_x = filled({3, count}, one);
    auto d_x = filled({3, count}, store<T>(c.y));
    const auto turned_a = filled({count, 1}, one);
    const auto turned_b = filled({1, 1}, one);
    owned_workspace scratch(lora_backward_workspace_size<float>(plan, count, 1, 1));
    lora_backward(serial_executor{}, plan, wide_x.view(),
                  as_batch(lora<const T>{turned_a.view(), turned_b.view()}), c.scale, hidden.view(),
                  d_y.view(), d_x.view(), lora_batch<T>{}, scratch);
    CHECK(all_want(d_x));

    auto weight = filled({count, 3}, store<T>(c.y));
    const auto column = filled({3, 1}, x);
    merge_lora(serial_executor{}, lora<const T>{column.view(), b.view()}, c.scale, weight.view());
    CHECK(all_want(weight));

    if (!detail::is_exactly(c.scale, 1)) return;
    auto rescaled = filled({3, count}, store<T>(c.y));
    const auto passed = filled({3, count}, x);
    const auto ones = filled({1, count}, one);
    ia3_backward(serial_executor{}, plan, passed.view(), ones.view(), passed.view(),
                 rescaled.view(), tensor_view<T, 2>{});
    CHECK(all_want(rescaled));
}

template <class T>
void check_roundings(const std::vector<rounding>& cases) {
    for (const rounding& c : cases)
        for (index_t count : {1, 3, 8, 16, 37}) {
            check_rounding<T>(c, count);
            if (!std::isfinite(c.want) && is_fast_math) continue;
            check_rounding<T>({-c.y, -c.x, c.scale, -c.want}, count);
        }
}

} // namespace

TEST_CASE_TEMPLATE("weights of 0 alone change nothing, whatever the modules are", T,
                   plain MHR_TEST_ALSO(of_16_bits)) {
    routed_problem<T> p(sizes);
    p.weights.fill(typename T::W(0.F));
    check_nothing_changes(p); // the gradient of the weights is one of a product of two zeros
}

TEST_CASE_TEMPLATE("a scale of 0 changes nothing", T, plain MHR_TEST_ALSO(of_16_bits)) {
    for (double zero : {0.0, -0.0}) {
        routed_problem<T> p(sizes);
        p.scale = zero;
        check_nothing_changes(p);
    }
}

TEST_CASE("any number of threads gives the same bits: under -ffast-math, too") {
    const routed_sizes s{90, 4, 2, 5, 70, 33, 18};
    routed_problem<plain> want(s);
    want.prepare_backward();
    want.backward();
    want.forward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        routed_problem<plain> got(s);
        got.prepare_backward();
        got.backward(executor);
        got.forward(executor);
        CHECK(compare_bitwise(got.y.view(), want.y.view()));
        check_same_gradients(got, want);
    });
}

TEST_CASE("scales that make up for numbers far from 1") {
    // The scale makes up for x, or for d_y. It multiplies finished sums: those of products of both
    // have to be normal numbers.
    for (double scale : {0x1p-50, 0x1p-20, 0x1p20, 0x1p50}) {
        CAPTURE(scale);
        routed_problem<plain> p(sizes), want(sizes);
        p.scale *= scale;
        for (routed_problem<plain>* q : {&p, &want})
            q->forget_gradients();
        const auto d_y = copy_of(want.y);
        const auto times = [](const auto& view, double factor) {
            transform(view, view, [&](float value) { return static_cast<float>(value * factor); });
        };
        times(p.x.view(), 1 / scale);
        p.y.fill(0);
        want.y.fill(0);
        p.forward();
        want.forward();
        CHECK(equal(p.y.view(), copy_of(want.y)));
        const auto same = [](float value) { return value; };
        transform(d_y.view(), p.y.view(), same);
        transform(d_y.view(), want.y.view(), same);
        times(p.y.view(), 1 / scale);
        p.backward();
        want.backward();
        times(want.d_a.view(), 1 / scale);
        times(want.d_b.view(), 1 / scale);
        times(want.d_weights.view(), 1 / scale);
        CHECK(equal(p.d_x.view(), copy_of(want.d_x)));
        CHECK(equal(p.d_a.view(), copy_of(want.d_a)));
        CHECK(equal(p.d_b.view(), copy_of(want.d_b)));
        CHECK(equal(p.d_weights.view(), copy_of(want.d_weights)));
    }
}

TEST_CASE("what does not fit the storage type in between is no harm: sums are f32") {
    // x a is 65504^2, and again what f16 can hold.
    batch_plan plan;
    plan.assign_single_task(2);
    tensor<half, 2> x({2, 1}), a({1, 1}), b({1, 19}), y({2, 19});
    tensor<float, 2> hidden({2, 1});
    const half largest = std::numeric_limits<half>::max();
    x(0, 0) = x(1, 0) = a(0, 0) = largest;
    for (half& value : b.values())
        value = half(0x1p-14F);
    lora_forward(serial_executor{}, plan, x.view(), as_batch(lora<half>{a.view(), b.view()}),
                 0x1p-14, y.view(), hidden.view());
    for (const half& value : y.values())
        CHECK(value == half(65504.F * 65504.F * 0x1p-28F));
    CHECK(hidden(0, 0) == 65504.F * 65504.F);
}

TEST_CASE("sums are rounded to bf16 once, to the nearest, ties to even") {
    check_roundings<bf16>({
        {1, 0x1p-9, 1, 1},                      // below half a step of 2^-7
        {1, 0x1p-8, 1, 1},                      // a tie: even is below
        {1.0078125, 0x1p-8, 1, 1.015625},       // a tie: even is above
        {1, 0x1.02p-8, 1, 1.0078125},           // above the tie
        {0x1.fep127, 0, 1, 0x1.fep127},         // the largest
        {0x1.fep127, 0x1p119, 0.5, 0x1.fep127}, // below half a step beyond it
        {0, 0x1.fep127, 1, 0x1.fep127},
        {0x1.fep127, -0x1.fep127, 1, 0},
        {0, 0x1p-126, 1, 0x1p-126}, // the least normal one
    });
}

TEST_CASE("sums are rounded to f16 once, to the nearest, ties to even") {
    check_roundings<half>({
        {1, 0x1p-12, 1, 1},
        {1, 0x1p-11, 1, 1},
        {1.0009765625, 0x1p-11, 1, 1.001953125},
        {1, 0x1.004p-11, 1, 1.0009765625},
        {65504, 0, 1, 65504},
        {65504, 15.9921875, 1, 65504}, // below half a step of 32
        {0, 65504, 1, 65504},
        {65504, -65504, 1, 0},
        {0, 0x1p-14, 1, 0x1p-14},
        // Below the normal numbers of f16, and normal ones of f32.
        {0, 0x1p-24, 1, 0x1p-24},
        {0, 0x1p-24, 0.5, 0},         // a tie: even is 0
        {0, 0x1.8p-23, 0.5, 0x1p-23}, // a tie: even is above
        {0x1p-14, -0x1p-24, 1, 0x1.ff8p-15},
        {0x1.ff8p-15, 0x1p-24, 1, 0x1p-14},
    });
}

TEST_CASE("sums that do not fit the storage type become infinite" * needs_non_finite()) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    check_roundings<half>({
        {65504, 16, 1, infinity}, // a tie: what would be even is beyond
        {65504, 65504, 1, infinity},
        {0, 65504, 2, infinity},
        {0, infinity, 1, infinity},
        {65504, -infinity, 1, -infinity},
    });
    check_roundings<bf16>({
        {0x1.fep127, 0x1p119, 1, infinity},
        {0x1.fep127, 0x1.fep127, 1, infinity},
        {0, 0x1.fep127, 2, infinity},
        {0, infinity, 1, infinity},
    });
}

TEST_CASE("numbers of bf16 below the normal ones of f32" * needs_subnormals()) {
    check_roundings<bf16>({
        {0, 0x1p-133, 1, 0x1p-133}, // the least
        {0, 0x1p-132, 0.5, 0x1p-133},
        {0, 0x1p-133, 0.5, 0}, // a tie: even is 0
        {0x1p-126, -0x1p-133, 1, 0x1.fcp-127},
    });
}
