#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/ia3.hpp>
#include <mhr/adapters/merge.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

/// What is stored how: the adapter (or the scales), and the weight (and the bias).
template <class P_, class W_>
struct storage {
    using P = P_;
    using W = W_;
    using A = accumulator_t<P, W>;
    using S = oracle_t<P, W>;
};

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
using plain = storage<float, float>;
#define MERGE_STORAGES                                                                             \
    plain, storage<half, half>,                                                                    \
        storage<float, bf16> MHR_TEST_ALSO(storage<double, double>, storage<bf16, bf16>,           \
                                           storage<float, half>, storage<bf16, float>,             \
                                           storage<double, float>, storage<float, double>)

struct sizes {
    index_t in, out, rank;
};

// Round the tiles of 16 and 64 and the 16 rows of a part.
constexpr sizes shapes[] = {{1, 1, 1},    {64, 16, 16}, {65, 17, 17}, {63, 15, 3},
                            {130, 5, 33}, {7, 40, 1},   {3, 3, 40},   {129, 33, 2}};

template <class T>
struct problem {
    sizes s;
    double scale = -0.75;
    guarded_buffer<typename T::P, 2> a, b;
    guarded_buffer<typename T::W, 2> weight;

    explicit problem(const sizes& sizes_, layout of_adapter = layout::row_major,
                     layout of_weight = layout::row_major)
        : s(sizes_), a({s.in, s.rank}, of_adapter), b({s.rank, s.out}, of_adapter),
          weight({s.out, s.in}, of_weight) {
        random_source random(3);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(weight.view());
    }
    lora<typename T::P> adapter() { return {a.view(), b.view()}; }
    void merge(executor_ref executor = serial) {
        merge_lora(executor, adapter(), scale, weight.view());
    }
    void unmerge(executor_ref executor = serial) {
        unmerge_lora(executor, adapter(), scale, weight.view());
    }
};

/// A merged weight is what LoRA adds to its transpose if x is the identity.
template <class S>
tensor<S, 2> merged(const tensor<S, 2>& a, const tensor<S, 2>& b, S scale, tensor<S, 2> weight) {
    const index_t in = a.extents()[0];
    tensor<S, 2> identity({in, in});
    tensor<index_t, 1> adapter_of_row({in});
    for (index_t i = 0; i < in; ++i)
        identity(i, i) = 1;
    reference::lora_forward(adapter_of_row.const_view(), identity.const_view(),
                            a.const_view().prepend_axis(), b.const_view().prepend_axis(), scale,
                            weight.view().transpose(0, 1));
    return weight;
}

template <class T>
comparison agrees_with_oracle(problem<T>& p, const tensor<typename T::W, 2>& before) {
    using S = typename T::S;
    const auto scale = static_cast<S>(p.scale);
    const auto want =
        merged<S>(copy_as<S>(p.a.view()), copy_as<S>(p.b.view()), scale, copy_as<S>(before.view()));
    const auto size = merged<S>(magnitudes_as<S>(p.a.view()), magnitudes_as<S>(p.b.view()),
                                std::abs(scale), magnitudes_as<S>(before.view()));
    // A half of its epsilon for each of the sum's terms, the scale and the sum with the weight.
    return compare(p.weight.view(), want.view(), size.view(),
                   within<typename T::A>(static_cast<double>(p.s.rank) / 2 + 2, 0.5));
}

/// y[row] = x[row] weight^T.
template <class S, class X, class W>
tensor<S, 2> base_layer(const tensor_view<X, 2>& x, const tensor_view<W, 2>& weight) {
    tensor<S, 2> y({x.extent(0), weight.extent(0)});
    for_each_position(y.extents(), [&](const position<2>& at) {
        for (index_t i = 0; i < x.extent(1); ++i)
            y(at[0], at[1]) += load<S>(x(at[0], i)) * load<S>(weight(at[1], i));
    });
    return y;
}

} // namespace

TEST_CASE_TEMPLATE("a merged weight agrees with the oracle", T, MERGE_STORAGES) {
    for (const sizes& s : shapes) {
        CAPTURE(s.in);
        CAPTURE(s.out);
        CAPTURE(s.rank);
        problem<T> p(s);
        const auto before = copy_as<typename T::W>(p.weight.view());
        p.merge();
        CHECK(agrees_with_oracle(p, before));
        CHECK(p.weight.intact());
    }
}

TEST_CASE_TEMPLATE("merging works in every layout, to the same bits", T, plain,
                   storage<float, bf16>) {
    const sizes s{70, 37, 18};
    problem<T> want(s);
    const auto before = copy_as<typename T::W>(want.weight.view());
    want.merge();
    for (layout of_adapter : all_layouts)
        for (layout of_weight : all_layouts) {
            CAPTURE(name_of(of_adapter));
            CAPTURE(name_of(of_weight));
            problem<T> p(s, of_adapter, of_weight);
            p.merge();
            CHECK(compare_bitwise(p.weight.view(), want.weight.view()));
            CHECK(p.weight.intact());
            problem<T> undone(s, of_adapter, of_weight), plainly(s);
            undone.unmerge();
            plainly.unmerge();
            CHECK(compare_bitwise(undone.weight.view(), plainly.weight.view()));
        }
    // A host that keeps [in, out].
    guarded_buffer<typename T::W, 2> weight({s.in, s.out});
    transform(before.view(), weight.view().transpose(0, 1),
              [](const auto& value) { return value; });
    merge_lora(serial, want.adapter(), want.scale, weight.view().transpose(0, 1));
    CHECK(compare_bitwise(weight.view().transpose(0, 1), want.weight.view()));
}

TEST_CASE("an adapter of stride 0 is broadcast") {
    const sizes s{20, 18, 3};
    problem<plain> p(s), same(s);
    const float element = 0.375F;
    same.a.fill(element);
    same.merge();
    merge_lora(serial, lora<const float>{{&element, {s.in, s.rank}, {0, 0}}, p.b.view()}, p.scale,
               p.weight.view());
    CHECK(compare_bitwise(p.weight.view(), same.weight.view()));
}

TEST_CASE_TEMPLATE("unmerging takes the same numbers out again, within the documented bound", T,
                   MERGE_STORAGES) {
    using W = typename T::W;
    using A = typename T::A;
    using S = typename T::S;
    const double u = epsilon_of<W>() / 2;
    double worst = 0;
    for (double scale : {0.001, -0.75, 1.0, 300.0}) {
        CAPTURE(scale);
        const sizes s{65, 40, 5};
        problem<T> p(s);
        p.scale = scale;
        const auto before = copy_as<W>(p.weight.view());
        tensor<A, 2> change({s.out, s.in}); // from zeros, in the type of the sums
        merge_lora(serial, p.adapter(), scale, change.view());
        tensor<W, 2> want({s.out, s.in});
        const auto check_all = [&](const auto& got, auto&& f) {
            for_each_position(want.extents(),
                              [&](const position<2>& at) { want(at[0], at[1]) = store<W>(f(at)); });
            CHECK(compare_bitwise(got.view(), want.view()));
        };
        p.merge();
        const auto after = copy_as<W>(p.weight.view());
        check_all(after, [&](const position<2>& at) {
            return load<A>(before(at[0], at[1])) + change(at[0], at[1]);
        });
        p.unmerge();
        const auto undone = copy_as<W>(p.weight.view());
        check_all(undone, [&](const position<2>& at) {
            return load<A>(after(at[0], at[1])) - change(at[0], at[1]);
        });
        std::size_t outside = 0;
        for_each_position(want.extents(), [&](const position<2>& at) {
            const S w = load<S>(before(at[0], at[1]));
            const S d = load<S>(change(at[0], at[1]));
            const S error = std::abs(load<S>(undone(at[0], at[1])) - w);
            const S bound = static_cast<S>(u * (1 + 4 * u)) * (std::abs(w + d) + std::abs(w)) +
                            static_cast<S>(smallest_step_of<W>());
            if (!(error <= bound)) ++outside;
            worst = std::max(worst, static_cast<double>(error / bound));
        });
        CHECK(outside == 0);
    }
    CHECK(worst > 0.5); // the bound says something
}

TEST_CASE_TEMPLATE("where nothing is rounded, unmerging restores every bit", T, MERGE_STORAGES) {
    problem<T> p({33, 20, 4});
    const auto round = [](const auto& view) {
        transform(view, view, [](const auto& value) {
            using V = std::decay_t<decltype(value)>;
            return store<V>(std::round(2 * load<float>(value)) + 0); // -2 .. 2, no -0
        });
    };
    round(p.a.view());
    round(p.b.view());
    round(p.weight.view());
    p.scale = 2;
    const auto before = copy_as<typename T::W>(p.weight.view());
    p.merge();
    CHECK_FALSE(compare_bitwise(p.weight.const_view(), before.view()));
    p.unmerge();
    CHECK(compare_bitwise(p.weight.const_view(), before.view()));
}

TEST_CASE_TEMPLATE("what the adapter does not change keeps its bits", T, plain, storage<bf16, bf16>,
                   storage<float, half>) {
    using W = typename T::W;
    for (layout order : {layout::row_major, layout::column_major}) {
        const auto with_odd_weights = [&](problem<T>& p) {
            p.weight(0, 0) = store<W>(-0.0F);
            p.weight(17, 64) = store<W>(-0.0F);
            p.weight(1, 2) = std::numeric_limits<W>::signaling_NaN();
        };
        for (double scale : {0.0, -0.0}) {
            problem<T> p({65, 18, 3}, layout::row_major, order);
            with_odd_weights(p);
            const auto before = p.weight.take_snapshot();
            p.scale = scale;
            p.merge();
            p.unmerge();
            CHECK(p.weight.unchanged_since(before));
        }
        for (double scale : {1.5, -1.5}) {
            problem<T> p({65, 18, 3}, layout::row_major, order);
            with_odd_weights(p);
            p.b.fill(store<typename T::P>(0.F));
            p.scale = scale;
            const auto before = p.weight.take_snapshot();
            p.merge();
            p.unmerge();
            CHECK(p.weight.unchanged_since(before));
            // A column of b that is not 0 changes a row of the weight, and no other.
            p.b(2, 5) = store<typename T::P>(1.F);
            problem<T> same({65, 18, 3}, layout::row_major, order);
            with_odd_weights(same);
            p.merge();
            for (index_t row : {2, 3, 4, 6, 16})
                CHECK(compare_bitwise(p.weight.view().slice(0, row),
                                      same.weight.view().slice(0, row)));
            CHECK_FALSE(
                compare_bitwise(p.weight.view().slice(0, 5), same.weight.view().slice(0, 5)));
        }
    }
}

TEST_CASE_TEMPLATE("a merged layer gives what the layer and LoRA give", T, storage<double, double>,
                   plain, storage<float, bf16>, storage<half, half>) {
    using S = typename T::S;
    using A = typename T::A;
    const sizes s{30, 21, 4};
    problem<T> p(s);
    tensor<A, 2> x({9, s.in}), hidden({9, s.rank});
    random_source(8).fill(x.view());
    auto y = base_layer<A>(x.view(), p.weight.view());
    batch_plan plan;
    plan.assign_single_task(9);
    lora_forward(serial, plan, x.const_view(), as_batch(p.adapter()), p.scale, y.view(),
                 hidden.view());
    const auto x_size = magnitudes_as<S>(x.view());
    const auto size_of_weight =
        merged<S>(magnitudes_as<S>(p.a.view()), magnitudes_as<S>(p.b.view()),
                  static_cast<S>(std::abs(p.scale)), magnitudes_as<S>(p.weight.view()));
    p.merge();
    const auto want = base_layer<S>(x.view(), p.weight.view());
    const auto size = base_layer<S>(x_size.view(), size_of_weight.view());
    const double roundings = static_cast<double>(2 * s.in + 2 * s.rank) * epsilon_of<A>();
    CHECK(compare(y.view(), want.view(), size.view(),
                  error_bound{1, roundings + epsilon_of<typename T::W>() / 2, 0}));
}

TEST_CASE("a task's mixture and the mean of an inventory, merged") {
    using routed = routed_problem<routed_storage<float, float, float, float>>;
    for (bool mean : {false, true}) {
        CAPTURE(mean);
        const routed_sizes s{11, 1, 3, 4, 5, 7, 3};
        batch_plan plan;
        plan.assign_single_task(s.rows);
        routed p(s, plan);
        if (mean) p.weights.fill(0.25F);
        tensor<float, 2> weight({s.out(), s.in()});
        random_source(12).fill(weight.view());
        const auto base = base_layer<float>(p.x.view(), weight.view());
        transform(base.view(), p.y.view(), [](float value) { return value; });
        p.forward();

        tensor<float, 2> a({s.in(), s.rank}), b({s.rank, s.out()});
        const lora<float> adapter{a.view(), b.view()};
        if (mean)
            average_lora_forward(serial, p.inventory(), adapter);
        else
            mix_lora_forward(serial, p.weights.view(), p.inventory(), as_batch(adapter));
        merge_lora(serial, adapter, p.scale, weight.view());
        const auto y = base_layer<float>(p.x.view(), weight.view());
        // Sums of up to 15 terms of about 1, and of 45 where LoRA multiplies.
        tensor<double, 2> size(y.extents());
        for (double& value : size.values())
            value = 60;
        CHECK(compare(y.view(), copy_as<double>(p.y.view()).view(), size.view(),
                      within<float>(1, 0)));
        CHECK_FALSE(compare(base.view(), copy_as<double>(p.y.view()).view(), size.view(),
                            within<float>(1000, 0)));
    }
}

TEST_CASE("merging gives the same bits on every executor, and accepts shares") {
    const sizes s{150, 130, 9};
    problem<plain> want(s), undone(s);
    want.merge();
    undone.unmerge();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem<plain> p(s), q(s);
        p.merge(executor);
        q.unmerge(executor);
        CHECK(compare_bitwise(p.weight.view(), want.weight.view()));
        CHECK(compare_bitwise(q.weight.view(), undone.weight.view()));
    });
    for (layout order : {layout::row_major, layout::column_major}) {
        problem<plain> p(s, layout::row_major, order);
        for_each_share(3, [&](executor_ref executor) { p.merge(executor); });
        CHECK(compare_bitwise(p.weight.view(), want.weight.view()));
    }
}

TEST_CASE("merging with an extent of 0 anywhere") {
    for (const sizes& s : {sizes{0, 4, 2}, sizes{4, 0, 2}, sizes{4, 5, 0}, sizes{0, 0, 0}}) {
        problem<plain> p(s);
        const auto before = p.weight.take_snapshot();
        p.merge();
        p.unmerge();
        CHECK(p.weight.unchanged_since(before));
    }
    merge_lora(serial, lora<float>{}, 1, tensor_view<float, 2>{});
    merge_ia3(serial, tensor_view<float, 1>{}, tensor_view<float, 2>{}, tensor_view<float, 1>{});
}

TEST_CASE("merging does not allocate") {
    problem<plain> p({70, 40, 5});
    tensor<float, 1> scales({40});
    random_source(1).fill(scales.view(), 1, 2);
    CHECK(allocations_of([&] {
              p.merge();
              p.unmerge();
              merge_ia3(serial, scales.view(), p.weight.view(), tensor_view<float, 1>{});
              unmerge_ia3(serial, scales.view(), p.weight.view(), tensor_view<float, 1>{});
          }) == 0);
}

TEST_CASE("bad input of merge_lora and unmerge_lora") {
    problem<plain> p({6, 5, 3});
    for (bool undo : {false, true}) {
        const auto refused = [&](const char* argument, auto a, auto b, auto weight) {
            return refuses(
                undo ? "unmerge_lora" : "merge_lora", argument,
                [&] {
                    const lora<float> adapter{a, b};
                    undo ? unmerge_lora(serial, adapter, 1, weight)
                         : merge_lora(serial, adapter, 1, weight);
                },
                p.weight);
        };
        const auto a = p.a.view();
        const auto b = p.b.view();
        const auto weight = p.weight.view();
        for (const auto& bad : bad_as_input(a, {0, 1})) {
            CAPTURE(bad.what);
            CHECK(refused("adapter.a", bad.view, b, weight));
        }
        for (const auto& bad : bad_as_input(b, {1})) {
            CAPTURE(bad.what);
            CHECK(refused("adapter.b", a, bad.view, weight));
        }
        for (const auto& bad : bad_as_output(weight)) {
            CAPTURE(bad.what);
            CHECK(refused("weight", a, b, bad.view));
        }
    }
}

namespace {

template <class T>
struct ia3_problem {
    guarded_buffer<typename T::P, 1> scales;
    guarded_buffer<typename T::W, 2> weight;
    guarded_buffer<typename T::W, 1> bias;

    explicit ia3_problem(index_t in, index_t out, layout order = layout::row_major)
        : scales({out}, order), weight({out, in}, order), bias({out}, order) {
        random_source random(4);
        random.fill(scales.view(), 0.25, 4);
        for (index_t o = 0; o < out; o += 3)
            scales(o) = store<typename T::P>(-load<float>(scales(o)));
        random.fill(weight.view());
        random.fill(bias.view());
    }
    void merge(executor_ref executor = serial) {
        merge_ia3(executor, scales.view(), weight.view(), bias.view());
    }
    void unmerge(executor_ref executor = serial) {
        unmerge_ia3(executor, scales.view(), weight.view(), bias.view());
    }
};

} // namespace

TEST_CASE_TEMPLATE("merged (IA)3 agrees with the formula, and is taken out again", T,
                   MERGE_STORAGES) {
    using S = typename T::S;
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        ia3_problem<T> p(7, 11, order);
        const auto weight = copy_as<S>(p.weight.view());
        const auto bias = copy_as<S>(p.bias.view());
        auto merged_weight = weight;
        auto merged_bias = bias;
        for_each_position(weight.extents(), [&](const position<2>& at) {
            merged_weight(at[0], at[1]) *= load<S>(p.scales(at[0]));
        });
        for (index_t o = 0; o < 11; ++o)
            merged_bias(o) *= load<S>(p.scales(o));
        p.merge();
        const auto once = within<typename T::A>(0.5, 0.5);
        CHECK(compare(p.weight.view(), merged_weight.view(), once));
        CHECK(compare(p.bias.view(), merged_bias.view(), once));
        p.unmerge();
        const auto twice = within<typename T::A>(1, 1);
        CHECK(compare(p.weight.view(), weight.view(), twice));
        CHECK(compare(p.bias.view(), bias.view(), twice));
        CHECK(p.weight.intact());
        CHECK(p.bias.intact());

        // By powers of two nothing is rounded; without a bias, nothing else changes.
        ia3_problem<T> q(7, 11, order);
        for (index_t o = 0; o < 11; ++o)
            q.scales(o) = store<typename T::P>(std::ldexp(o % 2 == 0 ? 1.F : -1.F, int(o) - 5));
        const auto before = q.weight.take_snapshot();
        merge_ia3(serial, q.scales.view(), q.weight.view(), tensor_view<float, 1>{});
        CHECK_FALSE(q.weight.unchanged_since(before));
        unmerge_ia3(serial, q.scales.view(), q.weight.view(), tensor_view<float, 1>{});
        CHECK(q.weight.unchanged_since(before));
    }
}

TEST_CASE("a layer with merged (IA)3 gives the rescaled output, or that of a rescaled input") {
    const index_t rows = 6, in = 9, out = 5;
    ia3_problem<plain> p(in, out);
    tensor<float, 2> x({rows, in});
    random_source(2).fill(x.view());
    const auto layer = [&](const tensor_view<const float, 2>& input) {
        auto y = base_layer<float>(input, p.weight.view());
        for_each_position(y.extents(),
                          [&](const position<2>& at) { y(at[0], at[1]) += p.bias(at[1]); });
        return y;
    };
    const auto agree = [](const tensor<float, 2>& got, const tensor<float, 2>& want) {
        tensor<double, 2> size(want.extents());
        for (double& value : size.values())
            value = 40; // 10 terms of up to 4
        return compare(got.view(), copy_as<double>(want.view()).view(), size.view(),
                       within<float>(2, 0));
    };
    batch_plan plan;
    plan.assign_single_task(rows);

    auto want = layer(x.view());
    ia3_forward(serial, plan, want.view(), p.scales.view().prepend_axis(), want.view());
    p.merge();
    CHECK(agree(layer(x.view()), want));
    p.unmerge();

    tensor<float, 1> scales_of_input({in});
    random_source(5).fill(scales_of_input.view(), 0.5, 2);
    auto rescaled = x;
    ia3_forward(serial, plan, x.view(), scales_of_input.view().prepend_axis(), rescaled.view());
    want = layer(rescaled.view());
    merge_ia3(serial, scales_of_input.view(), p.weight.view().transpose(0, 1),
              tensor_view<float, 1>{});
    CHECK(agree(layer(x.view()), want));
}

TEST_CASE("merging (IA)3 gives the same bits on every executor, and accepts shares") {
    ia3_problem<plain> want(33, 70), undone(33, 70);
    want.merge();
    undone.unmerge();
    const auto check = [](ia3_problem<plain>& got, ia3_problem<plain>& expected) {
        CHECK(compare_bitwise(got.weight.view(), expected.weight.view()));
        CHECK(compare_bitwise(got.bias.view(), expected.bias.view()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        ia3_problem<plain> p(33, 70), q(33, 70);
        p.merge(executor);
        q.unmerge(executor);
        check(p, want);
        check(q, undone);
    });
    ia3_problem<plain> p(33, 70), q(33, 70);
    for_each_share(4, [&](executor_ref executor) {
        p.merge(executor);
        q.unmerge(executor);
    });
    check(p, want);
    check(q, undone);
}

TEST_CASE("bad input of merge_ia3 and unmerge_ia3") {
    ia3_problem<plain> p(6, 5);
    for (bool undo : {false, true}) {
        CAPTURE(undo);
        const auto refused = [&](const char* argument, auto scales, auto weight, auto bias) {
            return refuses(
                undo ? "unmerge_ia3" : "merge_ia3", argument,
                [&] {
                    undo ? unmerge_ia3(serial, scales, weight, bias)
                         : merge_ia3(serial, scales, weight, bias);
                },
                p.weight, p.bias);
        };
        const auto scales = p.scales.view();
        const auto weight = p.weight.view();
        const auto bias = p.bias.view();
        for (const auto& bad : bad_as_input(scales, {0})) {
            CAPTURE(bad.what);
            CHECK(refused("scales", bad.view, weight, bias));
        }
        CHECK(refused("weight", scales.block(0, 0, 4), weight, bias));
        for (const auto& bad : bad_as_output(weight, {1})) {
            CAPTURE(bad.what);
            CHECK(refused("weight", scales, bad.view, bias));
        }
        for (const auto& bad : bad_as_output(bias)) {
            CAPTURE(bad.what);
            CHECK(refused("bias", scales, weight, bad.view));
        }
        for (float destructive : {0.F, -0.F, std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()}) {
            CAPTURE(destructive);
            std::vector<float> numbers{1, 2, 3, 4, destructive};
            const tensor_view<float, 1> bad(numbers.data(), {5});
            CHECK(refused("scales", bad, weight, bias));
        }
    }
    // What an f32 holds and an f16 does not is not 0 yet.
    float tiny = 1e-30F;
    float big = 1e30F;
    merge_ia3(serial, tensor_view<float, 1>(&tiny, {1}), tensor_view<float, 2>(&big, {1, 1}),
              tensor_view<float, 1>{});
    CHECK(big == doctest::Approx(1));
}
