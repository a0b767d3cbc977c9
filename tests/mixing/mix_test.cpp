#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <mhr/mixing/mix.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// What is stored how: weights, modules, what is mixed, and the gradients of the first two.
template <class W_, class M_, class Y_, class DW_ = W_, class DM_ = M_>
struct storage {
    using W = W_;
    using M = M_;
    using Y = Y_;
    using DW = DW_;
    using DM = DM_;
    using S = oracle_t<W, M, Y, DW, DM>;
};

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
#define MIX_STORAGES                                                                               \
    storage<double, double, double>, storage<float, float, float>, storage<bf16, bf16, bf16>,      \
        storage<half, half, half>, storage<float, bf16, float>,                                    \
        storage<bf16, half, float, float, float>, storage<double, float, float>,                   \
        storage<float, float, double, double, bf16>

struct sizes {
    index_t entries, heads, modules, p, q;
};

// Round the 16 lanes of inner products and the 256 elements of a chunk, rows joined or not. One
// block is more than a part mixes, and the gradients of one are worth several parts.
constexpr sizes shapes[] = {
    {1, 1, 1, 1, 1},   {3, 2, 5, 7, 3},   {2, 3, 4, 16, 16},  {1, 1, 3, 1, 257},
    {2, 1, 2, 3, 300}, {2, 1, 1, 513, 1}, {5, 2, 3, 2, 15},   {1, 4, 2, 17, 1},
    {4, 1, 7, 1, 256}, {1, 2, 3, 2, 1},   {1, 2, 2, 37, 300}, {9, 1, 5, 20, 150},
};

/// Buffers of one call, of random values; a fifth of the weights is 0 (modules switched off).
template <class T>
struct problem {
    guarded_buffer<typename T::W, 3> weights;
    guarded_buffer<typename T::M, 4> modules;
    guarded_buffer<typename T::Y, 4> mixed; // the result of the forward, or d_mixed
    guarded_buffer<typename T::DM, 4> d_modules;
    guarded_buffer<typename T::DW, 3> d_weights;

    explicit problem(const sizes& s, layout of_weights = layout::row_major,
                     layout of_modules = layout::row_major, layout of_mixed = layout::row_major,
                     layout of_gradients = layout::row_major)
        : weights({s.entries, s.heads, s.modules}, of_weights),
          modules({s.heads, s.modules, s.p, s.q}, of_modules),
          mixed({s.entries, s.heads, s.p, s.q}, of_mixed),
          d_modules({s.heads, s.modules, s.p, s.q}, of_gradients),
          d_weights({s.entries, s.heads, s.modules}, of_gradients) {
        random_source random(7);
        random.fill(weights.view());
        for_each_position(weights.view().extents(), [&](const position<3>& at) {
            if (random.integer(5) == 0) element(weights.view(), at) = typename T::W(0.F);
        });
        random.fill(modules.view());
        random.fill(mixed.view());
        random.fill(d_modules.view());
        random.fill(d_weights.view());
    }

    void forward(executor_ref executor = serial_executor{}) {
        mix_forward(executor, weights.view(), modules.view(), mixed.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        mix_backward(executor, weights.view(), modules.view(), mixed.view(), d_modules.view(),
                     d_weights.view());
    }
};

/// The oracle's results and their magnitudes.
template <class S>
struct expectation {
    tensor<S, 4> mixed, mixed_size, d_modules, d_modules_size;
    tensor<S, 3> d_weights, d_weights_size;
};

template <class S, class T>
expectation<S> oracle(problem<T>& p) {
    const auto run = [](const auto& w, const auto& m, const auto& d, auto& mixed, auto& d_m,
                        auto& d_w) {
        mixed = tensor<S, 4>(d.extents());
        reference::mix_forward(w.const_view(), m.const_view(), mixed.view());
        reference::mix_backward(w.const_view(), m.const_view(), d.const_view(), d_m.view(),
                                d_w.view());
    };
    expectation<S> e;
    e.d_modules = copy_as<S>(p.d_modules.view());
    e.d_weights = copy_as<S>(p.d_weights.view());
    e.d_modules_size = magnitudes_as<S>(p.d_modules.view());
    e.d_weights_size = magnitudes_as<S>(p.d_weights.view());
    run(copy_as<S>(p.weights.view()), copy_as<S>(p.modules.view()), copy_as<S>(p.mixed.view()),
        e.mixed, e.d_modules, e.d_weights);
    run(magnitudes_as<S>(p.weights.view()), magnitudes_as<S>(p.modules.view()),
        magnitudes_as<S>(p.mixed.view()), e.mixed_size, e.d_modules_size, e.d_weights_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes.
template <class... T>
error_bound sum_of(index_t n) {
    return within<accumulator_t<T...>>(static_cast<double>(n) / 2 + 1);
}

} // namespace

TEST_CASE_TEMPLATE("mixing agrees with the oracle", T, MIX_STORAGES) {
    using S = typename T::S;
    for (const sizes& s : shapes) {
        CAPTURE(s.entries);
        CAPTURE(s.p);
        CAPTURE(s.q);
        problem<T> p(s);
        const auto want = oracle<S>(p);
        p.backward();
        CHECK(compare(p.d_modules.view(), want.d_modules.view(), want.d_modules_size.view(),
                      sum_of<typename T::W, typename T::Y, typename T::DM>(s.entries)));
        CHECK(compare(p.d_weights.view(), want.d_weights.view(), want.d_weights_size.view(),
                      sum_of<typename T::M, typename T::Y, typename T::DW>(s.p * s.q)));
        p.forward();
        CHECK(compare(p.mixed.view(), want.mixed.view(), want.mixed_size.view(),
                      sum_of<typename T::W, typename T::M, typename T::Y>(s.modules)));
        CHECK(p.mixed.intact());
        CHECK(p.d_modules.intact());
        CHECK(p.d_weights.intact());
    }
}

TEST_CASE("mixing works in every layout") {
    const sizes s{3, 2, 4, 6, 19};
    using T = storage<float, float, float>;
    problem<T> plain(s);
    const auto want = oracle<double>(plain);
    plain.backward();
    const auto d_modules = copy_as<float>(plain.d_modules.view());
    plain.forward();
    for (layout of_modules : all_layouts)
        for (layout of_mixed : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_modules));
                CAPTURE(name_of(of_mixed));
                CAPTURE(name_of(of_gradients));
                problem<T> p(s, of_gradients, of_modules, of_mixed, of_gradients);
                p.backward();
                // Even to the last bit, but for the inner products: dense rows are summed as one.
                CHECK(compare_bitwise(p.d_modules.const_view(), d_modules.const_view()));
                CHECK(compare(p.d_weights.view(), want.d_weights.view(), want.d_weights_size.view(),
                              sum_of<float>(s.p * s.q)));
                p.forward();
                CHECK(compare_bitwise(p.mixed.view(), plain.mixed.view()));
                CHECK(p.mixed.intact());
                CHECK(p.d_modules.intact());
                CHECK(p.d_weights.intact());
            }
}

TEST_CASE("columns may be dense instead of rows") {
    // Of the modules, of what is mixed, of the gradient; in parts, too.
    using T = storage<float, float, float>;
    for (const sizes& s : {sizes{3, 2, 4, 6, 19}, sizes{1, 1, 2, 300, 37}}) {
        problem<T> plain(s);
        const auto want = oracle<double>(plain);
        plain.backward();
        const auto d_modules = copy_as<float>(plain.d_modules.view());
        plain.forward();
        const auto swapped = [](auto& buffer, bool swap) {
            auto extents = buffer.view().extents();
            if (swap) std::swap(extents[2], extents[3]);
            return guarded_buffer<float, 4>(extents);
        };
        const auto seen = [](auto& buffer, bool swap) {
            return swap ? buffer.view().transpose(2, 3) : buffer.view();
        };
        const auto same = [](float value) { return value; };
        for (bool of_modules : {false, true})
            for (bool of_mixed : {false, true})
                for (bool of_gradients : {false, true}) {
                    CAPTURE(of_modules);
                    CAPTURE(of_mixed);
                    CAPTURE(of_gradients);
                    problem<T> p(s);
                    auto modules = swapped(p.modules, of_modules);
                    auto mixed = swapped(p.mixed, of_mixed);
                    auto gradients = swapped(p.d_modules, of_gradients);
                    transform(p.modules.view(), seen(modules, of_modules), same);
                    transform(p.mixed.view(), seen(mixed, of_mixed), same);
                    transform(p.d_modules.view(), seen(gradients, of_gradients), same);
                    mix_backward(serial_executor{}, p.weights.view(), seen(modules, of_modules),
                                 seen(mixed, of_mixed), seen(gradients, of_gradients),
                                 p.d_weights.view());
                    CHECK(compare_bitwise(seen(gradients, of_gradients), d_modules.view()));
                    CHECK(compare(p.d_weights.view(), want.d_weights.view(),
                                  want.d_weights_size.view(), sum_of<float>(s.p * s.q)));
                    mix_forward(serial_executor{}, p.weights.view(), seen(modules, of_modules),
                                seen(mixed, of_mixed));
                    CHECK(compare_bitwise(seen(mixed, of_mixed), plain.mixed.view()));
                    CHECK(mixed.intact());
                    CHECK(gradients.intact());
                }
    }
}

TEST_CASE("inputs of stride 0 are broadcast") {
    using T = storage<double, double, double>;
    // Weights that do not depend on the entry, modules that are all one, one gradient for all; and
    // the same in memory. Small whole numbers, of which every sum is exact.
    problem<T> dense({3, 2, 4, 5, 6});
    problem<T> broadcast({3, 2, 4, 5, 6});
    const auto whole = [](const auto& view) {
        transform(view, view, [](double value) { return std::round(8 * value); });
    };
    whole(broadcast.weights.view());
    whole(broadcast.modules.view());
    const auto with_stride_0 = [](const auto& view, std::size_t axis) {
        auto strides = view.strides();
        strides[axis] = 0;
        return std::decay_t<decltype(view)>(view.data(), view.extents(), strides);
    };
    const auto weights = with_stride_0(broadcast.weights.view(), 0);
    const auto modules = with_stride_0(broadcast.modules.view(), 1);
    const double gradient = 3;
    const tensor_view<const double, 4> d_mixed(&gradient, dense.mixed.view().extents(),
                                               {0, 0, 0, 0});
    const auto same = [](double value) { return value; };
    transform(weights, dense.weights.view(), same);
    transform(modules, dense.modules.view(), same);
    transform(d_mixed, dense.mixed.view(), same);
    for (problem<T>* p : {&dense, &broadcast}) {
        p->d_modules.fill(0);
        p->d_weights.fill(0);
    }

    dense.backward();
    mix_backward(serial_executor{}, weights, modules, d_mixed, broadcast.d_modules.view(),
                 broadcast.d_weights.view());
    CHECK(compare_bitwise(broadcast.d_modules.view(), dense.d_modules.view()));
    CHECK(compare_bitwise(broadcast.d_weights.view(), dense.d_weights.view()));
    dense.forward();
    mix_forward(serial_executor{}, weights, modules, broadcast.mixed.view());
    CHECK(compare_bitwise(broadcast.mixed.view(), dense.mixed.view()));
}

TEST_CASE("mixing gives the same bits on every executor") {
    // Less than is worth a thread, and more: the modules of a head go to several parts then.
    for (const sizes& s : {sizes{5, 3, 4, 9, 40}, sizes{8, 2, 9, 40, 100}}) {
        CAPTURE(s.entries);
        using T = storage<float, bf16, float, float, float>;
        problem<T> want(s);
        want.backward();
        const auto check = [&](auto&& run) {
            problem<T> p(s);
            run([&](executor_ref executor) { p.backward(executor); });
            CHECK(compare_bitwise(p.d_modules.view(), want.d_modules.view()));
            CHECK(compare_bitwise(p.d_weights.view(), want.d_weights.view()));
            problem<T> forward(s);
            forward.forward();
            const auto serial = copy_as<float>(forward.mixed.view());
            forward.mixed.fill(-1);
            run([&](executor_ref executor) { forward.forward(executor); });
            CHECK(compare_bitwise(forward.mixed.const_view(), serial.view()));
        };
        for_each_executor([&](executor_ref executor, const std::string& name) {
            CAPTURE(name);
            check([&](auto&& call) { call(executor); });
        });
        for (index_t nth : {1, 2, 5, 100})
            check([&](auto&& call) { for_each_share(nth, call); });
    }
}

TEST_CASE("each gradient of mixing may be absent") {
    using T = storage<float, float, float>;
    const sizes s{3, 2, 4, 5, 6};
    problem<T> both(s), one(s), other(s), none(s);
    both.backward();
    const auto run = [](problem<T>& p, const tensor_view<float, 4>& d_modules,
                        const tensor_view<float, 3>& d_weights) {
        mix_backward(serial_executor{}, p.weights.view(), p.modules.view(), p.mixed.view(),
                     d_modules, d_weights);
    };
    run(one, one.d_modules.view(), {});
    run(other, {}, other.d_weights.view());
    CHECK(compare_bitwise(one.d_modules.view(), both.d_modules.view()));
    CHECK(compare_bitwise(other.d_weights.view(), both.d_weights.view()));
    CHECK(compare_bitwise(one.d_weights.view(), none.d_weights.view()));
    CHECK(compare_bitwise(other.d_modules.view(), none.d_modules.view()));
    run(none, {}, {});
    CHECK(compare_bitwise(none.d_weights.view(), one.d_weights.view()));
}

TEST_CASE("what has weight 0 is not read, as documented") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    guarded_buffer<float, 3> weights({2, 1, 2});
    guarded_buffer<float, 4> modules({1, 2, 2, 2}), mixed({2, 1, 2, 2}), d_modules({1, 2, 2, 2});
    weights.fill(0);
    weights(0, 0, 1) = 0.5F;
    weights(1, 0, 1) = 0.25F;
    modules.fill(nan);
    d_modules.fill(1);
    for (index_t p : {0, 1})
        for (index_t q : {0, 1})
            modules(0, 1, p, q) = 8;
    mix_forward(serial_executor{}, weights.view(), modules.view(), mixed.view());
    for_each_position(mixed.view().extents(), [&](const position<4>& at) {
        CHECK(element(mixed.view(), at) == (at[0] == 0 ? 4 : 2));
    });
    mixed.fill(nan);
    weights.fill(0);
    mix_backward(serial_executor{}, weights.view(), modules.view(), mixed.view(), d_modules.view(),
                 tensor_view<float, 3>{});
    for_each_position(d_modules.view().extents(),
                      [&](const position<4>& at) { CHECK(element(d_modules.view(), at) == 1); });
}

TEST_CASE("an extent of 0 anywhere") {
    using T = storage<float, float, float>;
    for (const sizes& s :
         {sizes{0, 2, 3, 4, 5}, sizes{2, 0, 3, 4, 5}, sizes{2, 2, 3, 0, 5}, sizes{2, 2, 3, 4, 0}}) {
        problem<T> p(s);
        const auto d_modules = p.d_modules.take_snapshot();
        const auto d_weights = p.d_weights.take_snapshot();
        const auto mixed = p.mixed.take_snapshot();
        p.forward();
        p.backward();
        CHECK(p.d_modules.unchanged_since(d_modules));
        CHECK(p.d_weights.unchanged_since(d_weights));
        CHECK(p.mixed.unchanged_since(mixed));
    }
    // No module: the mixture is 0, as a sum of nothing.
    problem<T> p({2, 2, 0, 2, 2});
    p.backward();
    p.forward();
    for_each_position(p.mixed.view().extents(),
                      [&](const position<4>& at) { CHECK(element(p.mixed.view(), at) == 0); });
    // No memory where there is nothing to remember.
    problem<T> q({2, 2, 3, 4, 5});
    mix_forward(serial_executor{}, tensor_view<float, 3>(nullptr, {0, 2, 3}), q.modules.view(),
                tensor_view<float, 4>(nullptr, {0, 2, 4, 5}));
}

TEST_CASE("equal weights of all heads are one head: MHR contains Poly") {
    const index_t heads = 3;
    guarded_buffer<double, 3> weights({2, 1, 4});
    guarded_buffer<double, 4> modules({1, 4, 6, 5}), one({2, 1, 6, 5}), many({2, heads, 2, 5});
    random_source random(11);
    random.fill(weights.view());
    random.fill(modules.view());
    mix_forward(serial_executor{}, weights.view(), modules.view(), one.view());
    // [1, m, p, q] seen as [heads, m, p / heads, q].
    const auto blocks = modules.view().slice(0, 0).split(1, heads).transpose(0, 1);
    const auto w = weights.view();
    const tensor_view<double, 3> repeated(w.data(), {2, heads, 4}, {w.stride(0), 0, w.stride(2)});
    mix_forward(serial_executor{}, repeated, blocks, many.view());
    CHECK(compare_bitwise(many.view().split(2, 1).slice(2, 0), one.view().slice(1, 0).split(1, 3)));
}

TEST_CASE("the gradients of mixing agree with finite differences") {
    problem<storage<double, double, double>> p({2, 2, 3, 3, 4});
    const auto cotangent = copy_as<double>(p.mixed.view());
    p.d_modules.fill(0);
    p.d_weights.fill(0);
    p.backward();
    const auto loss = [&] {
        p.forward();
        return contract<double>(p.mixed.view(), cotangent.view());
    };
    // Of a function that is linear in each argument; 1e-11 is what the differences lose.
    const auto bound = within<double>(1e-11 / epsilon_of<double>());
    const auto d_modules = central_difference_gradient(loss, p.modules.view());
    const auto d_weights = central_difference_gradient(loss, p.weights.view());
    const auto ones = [](auto result) {
        for (auto& value : result.values())
            value = 1;
        return result;
    };
    CHECK(compare(p.d_modules.view(), d_modules.view(), ones(d_modules).view(), bound));
    CHECK(compare(p.d_weights.view(), d_weights.view(), ones(d_weights).view(), bound));
}

TEST_CASE("planted bugs of a mixture are found") {
    using T = storage<float, float, float>;
    const sizes s{3, 2, 5, 7, 3};
    problem<T> p(s);
    const auto want = oracle<double>(p);
    const auto good = [&] {
        return compare(p.mixed.view(), want.mixed.view(), want.mixed_size.view(),
                       sum_of<float>(s.modules))
            .ok;
    };
    p.forward();
    CHECK(good());
    float& one = p.mixed(2, 1, 6, 2);
    const float right = one;
    one = -right;
    CHECK_FALSE(good());
    one = right * (1 + 40 * std::numeric_limits<float>::epsilon());
    CHECK_FALSE(good());
    one = std::numeric_limits<float>::quiet_NaN();
    CHECK((is_fast_math || !good()));
    // The weights of another head, and a transposed block.
    const auto swapped = tensor_view<float, 3>(&p.weights(0, 1, 0), {3, 2, 5}, {10, -5, 1});
    mix_forward(serial_executor{}, swapped, p.modules.view(), p.mixed.view());
    CHECK_FALSE(good());
    const auto transposed =
        tensor_view<float, 4>(p.modules.view().data(), {2, 5, 7, 3}, {105, 21, 1, 7});
    mix_forward(serial_executor{}, p.weights.view(), transposed, p.mixed.view());
    CHECK_FALSE(good());
}

TEST_CASE("bad input of mix_forward") {
    problem<storage<float, float, float>> p({3, 2, 4, 5, 6});
    const auto w = p.weights.view();
    const auto m = p.modules.view();
    const auto y = p.mixed.view();
    const auto refused = [&](const char* argument, auto weights, auto modules, auto mixed) {
        return refuses(
            "mix_forward", argument,
            [&] { mix_forward(serial_executor{}, weights, modules, mixed); }, p.mixed);
    };
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("weights", bad.view, m, y));
    }
    for (const auto& bad : bad_as_input(m, {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refused("modules", w, bad.view, y));
    }
    for (const auto& bad : bad_as_output(y)) {
        CAPTURE(bad.what);
        CHECK(refused("mixed", w, m, bad.view));
    }
}

TEST_CASE("bad input of mix_backward") {
    problem<storage<float, float, float>> p({3, 2, 4, 5, 6});
    const auto w = p.weights.view();
    const auto m = p.modules.view();
    const auto d = p.mixed.view();
    const auto d_m = p.d_modules.view();
    const auto d_w = p.d_weights.view();
    const auto refused = [&](const char* argument, auto... arguments) {
        return refuses(
            "mix_backward", argument, [&] { mix_backward(serial_executor{}, arguments...); },
            p.d_modules, p.d_weights);
    };
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("weights", bad.view, m, d, d_m, d_w));
    }
    for (const auto& bad : bad_as_input(m, {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refused("modules", w, bad.view, d, d_m, d_w));
    }
    for (const auto& bad : bad_as_input(d)) {
        CAPTURE(bad.what);
        CHECK(refused("d_mixed", w, m, bad.view, d_m, d_w));
    }
    for (const auto& bad : bad_as_output(d_m)) {
        CAPTURE(bad.what);
        CHECK(refused("d_modules", w, m, d, bad.view, d_w));
    }
    for (const auto& bad : bad_as_output(d_w)) {
        CAPTURE(bad.what);
        CHECK(refused("d_weights", w, m, d, d_m, bad.view));
    }
}
