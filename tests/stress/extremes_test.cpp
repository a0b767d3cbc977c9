// Arguments at the ends of what they may be: weights of 0, scales of 0 and beyond, numbers at the
// ends of bf16 and f16, in whole vectors and in what is left over.

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/ia3/ia3.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/serving/merge.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const std::vector<layer_types> types_of_extremes{layer_types{} MHR_TEST_ALSO(of_16_bits)};

constexpr layer_sizes sizes{30, 2, 3, 4, 9, 21, 5};

/// True if equal as numbers: 0 may have become -0 or the reverse.
template <std::size_t Rank>
bool equal(const guarded_tensor<Rank>& got, const guarded_tensor<Rank>& want) {
    bool result = want.const_ref().size() > 0;
    for_each_position(want.extents(), [&](const position<Rank>& at) {
        result = result && is_exactly(element(got.const_ref(), at), element(want.const_ref(), at));
    });
    return result;
}

/// True if y and the gradients are equal as numbers.
bool equal(const layer_problem& got, const layer_problem& want) {
    return equal(got.y, want.y) && equal(got.d_x, want.d_x) && equal(got.d_a, want.d_a) &&
           equal(got.d_b, want.d_b) && equal(got.d_weights, want.d_weights);
}

/// x, to which scale x is added, and what the storage type makes of it.
struct rounding {
    double y, x, scale, want;
};

/// A matrix of one number everywhere.
struct filled : guarded_tensor<2> {
    filled(element_type type, index_t rows, index_t columns, double value)
        : guarded_tensor<2>(type, {rows, columns}) {
        fill(value);
    }
};

/// Through LoRA (its vectors and tails), (IA)3's backward and merging, `count` times beside each
/// other: each adds scale x to y.
void check_rounding(element_type type, const rounding& c, index_t count) {
    CAPTURE(c.y);
    CAPTURE(c.x);
    CAPTURE(c.scale);
    CAPTURE(count);
    const filled want(type, 1, 1, c.want);
    const auto all_want = [&](const guarded_tensor<2>& y) {
        bool result = y.const_ref().size() > 0 && y.intact();
        for_each_position(y.extents(), [&](const position<2>& at) {
            result =
                result && is_exactly(element(y.const_ref(), at), element(want.const_ref(), {0, 0}));
        });
        return result;
    };
    batch_plan plan;
    plan.assign_single_task(3);
    const filled x(type, 3, 1, c.x), a(type, 1, 1, 1), b(type, 1, count, 1);
    filled y(type, 3, count, c.y), hidden(element_type::f32, 3, 1, 0);
    lora_forward({plan}, lora{a, b, c.scale}, x, y, {hidden});
    CHECK(all_want(y));

    // d_x of a layer turned round: [count] features in, one out.
    const filled d_y(type, 3, 1, c.x), wide_x(type, 3, count, 1), turned_a(type, count, 1, 1),
        turned_b(type, 1, 1, 1);
    filled d_x(type, 3, count, c.y);
    const lora turned{turned_a, turned_b, c.scale};
    poisoned_memory scratch(lora_backward_workspace_size({plan}, turned));
    lora_backward({plan}, turned, wide_x, d_y, {hidden}, {d_x, {}}, scratch);
    CHECK(all_want(d_x));

    filled base_weight(type, count, 3, c.y);
    merge_lora({}, {x, b, c.scale}, base_weight);
    CHECK(all_want(base_weight));

    if (!is_exactly(c.scale, 1)) return;
    const filled passed(type, 3, count, c.x), ones(type, 1, count, 1);
    filled rescaled(type, 3, count, c.y);
    ia3_backward({plan}, {ones}, passed, passed, {rescaled, {}});
    CHECK(all_want(rescaled));
}

void check_roundings(element_type type, const std::vector<rounding>& cases) {
    for (const rounding& c : cases)
        for (index_t count : {1, 3, 8, 16, 37}) {
            check_rounding(type, c, count);
            if (!std::isfinite(c.want) && is_fast_math) continue;
            check_rounding(type, {-c.y, -c.x, c.scale, -c.want}, count);
        }
}

} // namespace

TEST_CASE("weights of 0 alone change nothing, whatever the modules are") {
    for (const layer_types& types : types_of_extremes) {
        // The gradient of the weights is one of a product of two zeros.
        layer_problem p(sizes, types), before(sizes, types);
        p.weights.fill(0);
        p.run();
        CHECK(equal(p, before));
        CHECK(p.intact());
    }
}

TEST_CASE("a scale of 0 changes nothing") {
    for (const layer_types& types : types_of_extremes)
        for (double zero : {0.0, -0.0}) {
            layer_problem p(sizes, types), before(sizes, types);
            p.scale = zero;
            p.run();
            CHECK(equal(p, before));
            CHECK(p.intact());
        }
}

TEST_CASE("any number of threads gives the same bits: under -ffast-math, too") {
    const layer_sizes s{90, 4, 2, 5, 70, 33, 18};
    layer_problem want(s);
    want.run();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        layer_problem got(s);
        got.run(executor);
        check_same(got, want);
    });
}

TEST_CASE("scales that make up for numbers far from 1") {
    // The scale makes up for x, or for d_y. It multiplies finished sums: those of products of both
    // have to be normal numbers.
    for (double scale : {0x1p-50, 0x1p-20, 0x1p20, 0x1p50}) {
        CAPTURE(scale);
        layer_problem p(sizes), want(sizes);
        const auto times = [](auto& tensor, double factor) {
            transform_elements(tensor.ref(), [&](double value) { return value * factor; });
        };
        for (layer_problem* q : {&p, &want}) {
            q->y.fill(0);
            q->d_x.fill(0);
            q->d_a.fill(0);
            q->d_b.fill(0);
            q->d_weights.fill(0);
        }
        p.scale *= scale;
        times(p.x, 1 / scale);
        times(p.d_y, 1 / scale);
        p.run();
        want.run();
        times(want.d_a, 1 / scale);
        times(want.d_b, 1 / scale);
        times(want.d_weights, 1 / scale);
        CHECK(equal(p, want));
    }
}

TEST_CASE("what does not fit the storage type in between is no harm: sums are f32") {
    // x a is 65504^2, and again what f16 can hold.
    batch_plan plan;
    plan.assign_single_task(2);
    constexpr element_type type = element_type::f16;
    const filled x(type, 2, 1, 65504), a(type, 1, 1, 65504), b(type, 1, 19, 0x1p-14);
    filled y(type, 2, 19, 0), hidden(element_type::f32, 2, 1, 0);
    lora_forward({plan}, lora{a, b, 0x1p-14}, x, y, {hidden});
    const filled want(type, 2, 19, 65504.0 * 65504.0 * 0x1p-28);
    CHECK(compare_bitwise(y.ref(), want.const_ref()));
    CHECK(element(hidden.ref(), {0, 0}) == static_cast<double>(65504.F * 65504.F));
}

TEST_CASE("sums are rounded to bf16 once, to the nearest, ties to even") {
    check_roundings(element_type::bf16,
                    {
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
    check_roundings(element_type::f16,
                    {
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
    check_roundings(element_type::f16,
                    {
                        {65504, 16, 1, infinity}, // a tie: what would be even is beyond
                        {65504, 65504, 1, infinity},
                        {0, 65504, 2, infinity},
                        {0, infinity, 1, infinity},
                        {65504, -infinity, 1, -infinity},
                    });
    check_roundings(element_type::bf16, {
                                            {0x1.fep127, 0x1p119, 1, infinity},
                                            {0x1.fep127, 0x1.fep127, 1, infinity},
                                            {0, 0x1.fep127, 2, infinity},
                                            {0, infinity, 1, infinity},
                                        });
}

TEST_CASE("numbers of bf16 below the normal ones of f32" * needs_subnormals()) {
    check_roundings(element_type::bf16, {
                                            {0, 0x1p-133, 1, 0x1p-133}, // the least
                                            {0, 0x1p-132, 0.5, 0x1p-133},
                                            {0, 0x1p-133, 0.5, 0}, // a tie: even is 0
                                            {0x1p-126, -0x1p-133, 1, 0x1.fcp-127},
                                        });
}
