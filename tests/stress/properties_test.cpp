// These properties must hold of every layer with routed adapters, LoRA or (IA)3, and are tried on
// random ones: where all numbers are small and whole, and so every sum is exact, to the last bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/router.hpp>

#include "support/comparison.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_layers.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

#define BOTH_LAYERS lora_layer<double>, ia3_layer<double>

namespace {

const auto same = [](const auto& value) { return value; };

template <class T>
void check_same(const layer_results<T>& got, const layer_results<T>& want) {
    CHECK(compare_bitwise(got.y.view(), want.y.view()));
    CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
    for (std::size_t i = 0; i < got.d_modules.size(); ++i)
        CHECK(compare_bitwise(got.d_modules[i].view(), want.d_modules[i].view()));
    CHECK(compare_bitwise(got.d_table.view(), want.d_table.view()));
}

/// to[.., i, ..] = from[.., order[i], ..] along an axis.
template <class T, std::size_t Rank>
tensor<T, Rank> permuted(const tensor<T, Rank>& from, std::size_t axis,
                         const std::vector<index_t>& order) {
    tensor<T, Rank> to(from.extents());
    for_each_position(from.extents(), [&](const position<Rank>& at) {
        position<Rank> source = at;
        source[axis] = order[static_cast<std::size_t>(at[axis])];
        element(to.view(), at) = element(from.view(), source);
    });
    return to;
}

template <class T, std::size_t Rank>
void multiply(tensor<T, Rank>& values, double factor) {
    for (T& value : values.values())
        value *= static_cast<T>(factor);
}

/// Rows [first, first + count) of a batch.
template <class T>
rows_of_batch<T> part_of(const rows_of_batch<T>& batch, index_t first, index_t count) {
    return {
        std::vector<std::int64_t>(batch.tasks.begin() + first, batch.tasks.begin() + first + count),
        copy_as<T>(batch.x.view().block(0, first, count)),
        copy_as<T>(batch.d_y.view().block(0, first, count))};
}

template <class T, std::size_t Rank>
tensor<T, Rank> sum_of_both(const tensor<T, Rank>& a, const tensor<T, Rank>& b) {
    tensor<T, Rank> sum = a;
    for (std::size_t i = 0; i < sum.values().size(); ++i)
        sum.values()[i] += b.values()[i];
    return sum;
}

} // namespace

TEST_CASE_TEMPLATE("linear in the scale, by powers of two exactly", T, double, float) {
    for_random_layers<lora_layer<T>>(false, [](const auto& t, random_source&) {
        const auto want = t.layer.run(t.batch);
        for (double factor : {0.0, -1.0, 0x1p-30, 0x1p40}) {
            CAPTURE(factor);
            auto layer = t.layer;
            layer.scale *= factor;
            auto expected = want;
            multiply(expected.y, factor);
            multiply(expected.d_x, factor);
            multiply(expected.d_table, factor);
            for (auto& d : expected.d_modules)
                multiply(d, factor);
            const auto got = layer.run(t.batch);
            // 0 and -0 are equal, and have other bits.
            CHECK(got.y.values() == expected.y.values());
            CHECK(got.d_x.values() == expected.d_x.values());
            CHECK(got.d_table.values() == expected.d_table.values());
            for (std::size_t i = 0; i < 2; ++i)
                CHECK(got.d_modules[i].values() == expected.d_modules[i].values());
        }
    });
}

TEST_CASE("linear in the scale, by any factor within rounding") {
    for_random_layers<lora_layer<double>>(false, [](const auto& t, random_source& random) {
        const double factor = random.uniform(-3, 3);
        auto layer = t.layer;
        layer.scale *= factor;
        auto expected = t.layer.run(t.batch).y;
        multiply(expected, factor);
        // The magnitudes of the terms of the sums: those of 16 elements of the rank are added up
        // one by one.
        auto sizes = t;
        const auto make_positive = [](auto& values) {
            values = magnitudes_as<double>(values.view());
        };
        make_positive(sizes.layer.modules[0]);
        make_positive(sizes.layer.modules[1]);
        make_positive(sizes.layer.table);
        make_positive(sizes.batch.x);
        sizes.layer.scale *= std::abs(factor);
        CHECK(compare(layer.run(t.batch).y.view(), expected.view(),
                      sizes.layer.run(sizes.batch).y.view(), within(element_type::f64, 4)));
    });
}

TEST_CASE_TEMPLATE("linear in the inputs, by powers of two exactly", L, BOTH_LAYERS) {
    for_random_layers<L>(false, [](const auto& t, random_source&) {
        const auto want = t.layer.run(t.batch);
        auto batch = t.batch;
        multiply(batch.x, 0x1p-20);
        multiply(batch.d_y, 0x1p25);
        auto expected = want;
        multiply(expected.y, 0x1p-20);
        multiply(expected.d_x, 0x1p25);
        multiply(expected.d_table, 0x1p5);
        for (auto& d : expected.d_modules)
            multiply(d, 0x1p5);
        check_same(t.layer.run(batch), expected);
    });
}

TEST_CASE_TEMPLATE("the order of the modules does not matter", L, BOTH_LAYERS) {
    for_random_layers<L>(true, [](const auto& t, random_source& random) {
        const auto order = random.permutation(t.s.modules);
        L layer = t.layer;
        for (auto& matrices : layer.modules)
            matrices = permuted(matrices, 1, order);
        layer.table = permuted(layer.table, 2, order);
        auto want = t.layer.run(t.batch);
        for (auto& d : want.d_modules)
            d = permuted(d, 1, order);
        want.d_table = permuted(want.d_table, 2, order);
        check_same(layer.run(t.batch), want);
    });
}

TEST_CASE_TEMPLATE("the numbers of the tasks do not matter", L, BOTH_LAYERS) {
    for_random_layers<L>(true, [](const auto& t, random_source& random) {
        const auto order = random.permutation(t.s.tasks);
        L layer = t.layer;
        layer.table = permuted(layer.table, 0, order);
        auto batch = t.batch;
        std::vector<std::int64_t> number(order.size()); // the new one of an old one
        for (std::size_t i = 0; i < order.size(); ++i)
            number[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
        for (std::int64_t& task : batch.tasks)
            if (task >= 0) task = number[static_cast<std::size_t>(task)];
        auto want = t.layer.run(t.batch);
        want.d_table = permuted(want.d_table, 0, order);
        check_same(layer.run(batch), want);
    });
}

TEST_CASE_TEMPLATE("the order of the rows does not matter", L, BOTH_LAYERS) {
    for_random_layers<L>(true, [](const auto& t, random_source& random) {
        const auto rows = static_cast<index_t>(t.batch.tasks.size());
        const auto order = random.permutation(rows);
        auto batch = t.batch;
        batch.x = permuted(batch.x, 0, order);
        batch.d_y = permuted(batch.d_y, 0, order);
        for (std::size_t i = 0; i < order.size(); ++i)
            batch.tasks[i] = t.batch.tasks[static_cast<std::size_t>(order[i])];
        auto want = t.layer.run(t.batch);
        want.y = permuted(want.y, 0, order);
        want.d_x = permuted(want.d_x, 0, order);
        check_same(t.layer.run(batch), want);
    });
}

TEST_CASE_TEMPLATE("two batches give what they give as one, gradients their sum", L, BOTH_LAYERS) {
    for_random_layers<L>(true, [](const auto& t, random_source& random) {
        const auto rows = static_cast<index_t>(t.batch.tasks.size());
        const index_t first = random.integer(rows + 1);
        const auto want = t.layer.run(t.batch);
        const auto a = t.layer.run(part_of(t.batch, 0, first));
        const auto b = t.layer.run(part_of(t.batch, first, rows - first));
        auto together = want; // the rows of both
        transform(a.y.view(), together.y.view().block(0, 0, first), same);
        transform(b.y.view(), together.y.view().block(0, first, rows - first), same);
        transform(a.d_x.view(), together.d_x.view().block(0, 0, first), same);
        transform(b.d_x.view(), together.d_x.view().block(0, first, rows - first), same);
        for (std::size_t i = 0; i < a.d_modules.size(); ++i)
            together.d_modules[i] = sum_of_both(a.d_modules[i], b.d_modules[i]);
        together.d_table = sum_of_both(a.d_table, b.d_table);
        check_same(together, want);
    });
}

TEST_CASE_TEMPLATE("MHR whose heads have equal logits is Poly, to the last bit", L, BOTH_LAYERS) {
    for_random_layers<L>(false, [](const auto& t, random_source& random) {
        using T = typename L::value_type;
        const routing_rule rule{sigmoid_gate{}};
        const index_t heads = t.s.heads;
        trial_sizes one = t.s;
        one.heads = 1;
        one.in_block *= heads;
        one.out_block *= heads;
        L poly(one);
        L mhr = t.layer;
        std::vector<index_t> tasks(static_cast<std::size_t>(t.s.tasks));
        std::iota(tasks.begin(), tasks.end(), index_t(0));
        const tensor_view<const index_t, 1> ids(tasks.data(), {t.s.tasks});
        tensor<T, 3> logits({t.s.tasks, 1, t.s.modules}), same_logits(mhr.table.extents());
        random.fill(logits.view(), 3);
        for_each_position(same_logits.extents(), [&](const position<3>& at) {
            element(same_logits.view(), at) = logits(at[0], 0, at[2]);
        });
        router_forward({}, logits.view(), ids, rule, poly.table.view());
        router_forward({}, same_logits.view(), ids, rule, mhr.table.view());
        // Compares the matrices that are cut up by heads with the whole ones.
        const auto joined = [&](std::size_t i, const tensor<T, 4>& blocks, tensor<T, 4>& whole) {
            const std::size_t axis = L::axis_of_heads[i];
            for_each_position(blocks.extents(), [&](const position<4>& at) {
                position<4> to = at;
                to[0] = 0;
                to[axis] += at[0] * blocks.extents()[axis];
                element(whole.view(), to) = element(blocks.view(), at);
            });
        };
        for (std::size_t i = 0; i < mhr.modules.size(); ++i)
            joined(i, mhr.modules[i], poly.modules[i]);

        const auto got = mhr.run(t.batch);
        const auto want = poly.run(t.batch);
        CHECK(compare_bitwise(got.y.view(), want.y.view()));
        CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
        for (std::size_t i = 0; i < got.d_modules.size(); ++i) {
            tensor<T, 4> d = want.d_modules[i];
            joined(i, got.d_modules[i], d);
            CHECK(compare_bitwise(d.view(), want.d_modules[i].view()));
        }
        // The gradient of Poly's logits is the sum of those of the heads, but for rounding.
        tensor<T, 3> d_logits(logits.extents()), d_same(same_logits.extents());
        router_backward({}, logits.view(), ids, rule, want.d_table.view(), d_logits.view());
        router_backward({}, same_logits.view(), ids, rule, got.d_table.view(), d_same.view());
        tensor<T, 3> sum(logits.extents()), size(logits.extents());
        for_each_position(d_same.extents(), [&](const position<3>& at) {
            sum(at[0], 0, at[2]) += element(d_same.view(), at);
        });
        T largest = 0;
        for (T d : want.d_table.values())
            largest = std::max(largest, std::abs(d));
        for (T& s : size.values())
            s = largest + 1;
        CHECK(
            compare(sum.view(), d_logits.view(), size.view(), within(element_type_of_v<T>, 1000)));
    });
}
