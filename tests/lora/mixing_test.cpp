#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/mixing.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr element_type f32 = element_type::f32;
constexpr element_type f64 = element_type::f64;
constexpr element_type of_bf16 = element_type::bf16;
constexpr element_type of_f16 = element_type::f16;

/// The types of weights, modules, mixtures, and the gradients of the first two.
struct storage {
    element_type weights = f32, modules = f32, mixed = f32, d_weights = f32, d_modules = f32;

    [[nodiscard]] element_type sums_of_forward() const {
        return sums_of(sums_of(weights, modules), mixed);
    }
    [[nodiscard]] element_type sums_of_backward() const {
        return sums_of(sums_of_forward(), sums_of(d_weights, d_modules));
    }
};
constexpr storage all_of_type(element_type type) {
    return {type, type, type, type, type};
}

const std::vector<storage> storages{all_of_type(f64),
                                    all_of_type(f32),
                                    all_of_type(of_bf16),
                                    all_of_type(of_f16),
                                    {f32, of_bf16, f32, f32, of_bf16},
                                    {of_bf16, of_f16, f32, f32, f32},
                                    {f64, f32, f32, f64, f32},
                                    {f32, f32, f64, f64, of_bf16},
                                    {f32, f32, f32, f64, of_f16}};

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

/// How the tensors of one call lie in memory.
struct layouts {
    layout of_weights = layout::row_major;
    layout of_modules = layout::row_major;
    layout of_mixed = layout::row_major;
    layout of_gradients = layout::row_major;
};

/// The tensors of one call, of random values; a fifth of the weights is 0 (modules switched off).
struct problem {
    storage types;
    guarded_tensor<3> weights;
    guarded_tensor<4> modules;
    guarded_tensor<4> mixed; // the result of the forward, or d_mixed
    guarded_tensor<4> d_modules;
    guarded_tensor<3> d_weights;

    explicit problem(const sizes& s, const storage& t = {}, const layouts& l = {})
        : types(t), weights(t.weights, {s.entries, s.heads, s.modules}, l.of_weights),
          modules(t.modules, {s.heads, s.modules, s.p, s.q}, l.of_modules),
          mixed(t.mixed, {s.entries, s.heads, s.p, s.q}, l.of_mixed),
          d_modules(t.d_modules, modules.extents(), l.of_gradients),
          d_weights(t.d_weights, weights.extents(), l.of_gradients) {
        random_source random(7);
        weights.fill(random);
        transform_elements(weights.ref(), [&](double w) { return random.integer(5) == 0 ? 0 : w; });
        modules.fill(random);
        mixed.fill(random);
        d_modules.fill(random);
        d_weights.fill(random);
    }

    void forward(executor_ref executor = {}) { mix_forward(executor, weights, modules, mixed); }
    void backward(executor_ref executor = {}) {
        mix_backward(executor, weights, modules, mixed, {d_modules, d_weights});
    }
    [[nodiscard]] bool intact() const {
        return mixed.intact() && d_modules.intact() && d_weights.intact();
    }
};

/// More precise than any sum of the library.
using S = long double;

/// The oracle's results and their magnitudes.
struct expectation {
    tensor<S, 4> mixed, mixed_size, d_modules, d_modules_size;
    tensor<S, 3> d_weights, d_weights_size;
};

expectation oracle(problem& p) {
    const auto run = [](const auto& w, const auto& m, const auto& d, auto& mixed, auto& d_m,
                        auto& d_w) {
        mixed = tensor<S, 4>(d.extents());
        reference::mix_forward(w.const_view(), m.const_view(), mixed.view());
        reference::mix_backward(w.const_view(), m.const_view(), d.const_view(), d_m.view(),
                                d_w.view());
    };
    expectation e;
    e.d_modules = values_as<S>(p.d_modules.ref());
    e.d_weights = values_as<S>(p.d_weights.ref());
    e.d_modules_size = magnitudes_as<S>(p.d_modules.ref());
    e.d_weights_size = magnitudes_as<S>(p.d_weights.ref());
    run(values_as<S>(p.weights.ref()), values_as<S>(p.modules.ref()), values_as<S>(p.mixed.ref()),
        e.mixed, e.d_modules, e.d_weights);
    run(magnitudes_as<S>(p.weights.ref()), magnitudes_as<S>(p.modules.ref()),
        magnitudes_as<S>(p.mixed.ref()), e.mixed_size, e.d_modules_size, e.d_weights_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes.
error_bound sum_of(element_type sums, index_t n) {
    return within(sums, static_cast<double>(n) / 2 + 1);
}

/// Sets all elements of a tensor to those of another.
template <class From, std::size_t Rank>
void copy(const From& from, const tensor_ref<Rank>& to) {
    for_each_position(to.extents(),
                      [&](const position<Rank>& at) { set_element(to, at, element(from, at)); });
}

} // namespace

TEST_CASE("mixing agrees with the oracle") {
    for (const storage& types : storages)
        for (const sizes& s : shapes) {
            CAPTURE(std::string(name_of(types.weights)));
            CAPTURE(std::string(name_of(types.modules)));
            CAPTURE(std::string(name_of(types.mixed)));
            CAPTURE(s.entries);
            CAPTURE(s.p);
            CAPTURE(s.q);
            problem p(s, types);
            const auto want = oracle(p);
            p.backward();
            const element_type sums = types.sums_of_backward();
            CHECK(compare(p.d_modules.ref(), want.d_modules.view(), want.d_modules_size.view(),
                          sum_of(sums, s.entries)));
            CHECK(compare(p.d_weights.ref(), want.d_weights.view(), want.d_weights_size.view(),
                          sum_of(sums, s.p * s.q)));
            p.forward();
            CHECK(compare(p.mixed.ref(), want.mixed.view(), want.mixed_size.view(),
                          sum_of(types.sums_of_forward(), s.modules)));
            CHECK(p.intact());
        }
}

TEST_CASE("mixing works in every layout") {
    const sizes s{3, 2, 4, 6, 19};
    problem plain(s), before(s);
    const auto want = oracle(before);
    before.backward();
    plain.forward();
    for (layout of_modules : all_layouts)
        for (layout of_mixed : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_modules));
                CAPTURE(name_of(of_mixed));
                CAPTURE(name_of(of_gradients));
                problem p(s, {}, {of_gradients, of_modules, of_mixed, of_gradients});
                p.backward();
                // Even to the last bit, but for the inner products: dense rows are summed as one.
                CHECK(compare_bitwise(p.d_modules.ref(), before.d_modules.ref()));
                CHECK(compare(p.d_weights.ref(), want.d_weights.view(), want.d_weights_size.view(),
                              sum_of(f32, s.p * s.q)));
                p.forward();
                CHECK(compare_bitwise(p.mixed.ref(), plain.mixed.ref()));
                CHECK(p.intact());
            }
}

TEST_CASE("columns may be dense instead of rows") {
    // These sizes cut modules, mixtures and gradients into parts.
    for (const sizes& s : {sizes{3, 2, 4, 6, 19}, sizes{1, 1, 2, 300, 37}}) {
        problem plain(s), before(s);
        const auto want = oracle(before);
        before.backward();
        plain.forward();
        const auto swapped = [](const guarded_tensor<4>& t, bool swap) {
            auto extents = t.extents();
            if (swap) std::swap(extents[2], extents[3]);
            return extents;
        };
        const auto seen = [](guarded_tensor<4>& t, bool swap) {
            return swap ? t.ref().transpose(2, 3) : t.ref();
        };
        for (bool of_modules : {false, true})
            for (bool of_mixed : {false, true})
                for (bool of_gradients : {false, true}) {
                    CAPTURE(of_modules);
                    CAPTURE(of_mixed);
                    CAPTURE(of_gradients);
                    problem p(s);
                    guarded_tensor<4> modules(f32, swapped(p.modules, of_modules));
                    guarded_tensor<4> mixed(f32, swapped(p.mixed, of_mixed));
                    guarded_tensor<4> gradients(f32, swapped(p.d_modules, of_gradients));
                    copy(p.modules.ref(), seen(modules, of_modules));
                    copy(p.mixed.ref(), seen(mixed, of_mixed));
                    copy(p.d_modules.ref(), seen(gradients, of_gradients));
                    mix_backward({}, p.weights, seen(modules, of_modules), seen(mixed, of_mixed),
                                 {seen(gradients, of_gradients), p.d_weights});
                    CHECK(compare_bitwise(seen(gradients, of_gradients), before.d_modules.ref()));
                    CHECK(compare(p.d_weights.ref(), want.d_weights.view(),
                                  want.d_weights_size.view(), sum_of(f32, s.p * s.q)));
                    mix_forward({}, p.weights, seen(modules, of_modules), seen(mixed, of_mixed));
                    CHECK(compare_bitwise(seen(mixed, of_mixed), plain.mixed.ref()));
                    CHECK(mixed.intact());
                    CHECK(gradients.intact());
                }
    }
}

TEST_CASE("inputs of stride 0 are broadcast") {
    // Weights that do not depend on the entry, modules that are all one, one gradient for all; and
    // the same in memory. Small whole numbers, of which every sum is exact.
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        problem dense({3, 2, 4, 5, 6}, all_of_type(type));
        problem broadcast({3, 2, 4, 5, 6}, all_of_type(type));
        const auto whole = [](double value) { return std::round(4 * value); };
        transform_elements(broadcast.weights.ref(), whole);
        transform_elements(broadcast.modules.ref(), whole);
        const auto with_stride_0 = [](const auto& ref, std::size_t axis) {
            auto strides = ref.strides();
            strides[axis] = 0;
            return std::decay_t<decltype(ref)>(ref.data(), ref.type(), ref.extents(), strides);
        };
        const auto weights = with_stride_0(broadcast.weights.const_ref(), 0);
        const auto modules = with_stride_0(broadcast.modules.const_ref(), 1);
        guarded_tensor<1> gradient(type, {1});
        gradient.fill(3);
        const const_tensor_ref<4> d_mixed(gradient.ref().data(), type, dense.mixed.extents(),
                                          {0, 0, 0, 0});
        copy(weights, dense.weights.ref());
        copy(modules, dense.modules.ref());
        copy(d_mixed, dense.mixed.ref());
        for (problem* p : {&dense, &broadcast}) {
            p->d_modules.fill(0);
            p->d_weights.fill(0);
        }

        dense.backward();
        mix_backward({}, weights, modules, d_mixed, {broadcast.d_modules, broadcast.d_weights});
        CHECK(compare_bitwise(broadcast.d_modules.ref(), dense.d_modules.ref()));
        CHECK(compare_bitwise(broadcast.d_weights.ref(), dense.d_weights.ref()));
        dense.forward();
        mix_forward({}, weights, modules, broadcast.mixed);
        CHECK(compare_bitwise(broadcast.mixed.ref(), dense.mixed.ref()));
    }
}

TEST_CASE("mixing gives the same bits on every executor") {
    // Less than is worth a thread, and more: the modules of a head go to several parts then.
    const storage types{f32, of_bf16, f32, f32, f32};
    for (const sizes& s : {sizes{5, 3, 4, 9, 40}, sizes{8, 2, 9, 40, 100}}) {
        CAPTURE(s.entries);
        problem backward(s, types), forward(s, types);
        backward.backward();
        forward.forward();
        const auto check = [&](auto&& run) {
            problem p(s, types), q(s, types);
            run([&](executor_ref executor) { p.backward(executor); });
            CHECK(compare_bitwise(p.d_modules.ref(), backward.d_modules.ref()));
            CHECK(compare_bitwise(p.d_weights.ref(), backward.d_weights.ref()));
            q.mixed.fill(-1);
            run([&](executor_ref executor) { q.forward(executor); });
            CHECK(compare_bitwise(q.mixed.ref(), forward.mixed.ref()));
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
    const sizes s{3, 2, 4, 5, 6};
    problem both(s), one(s), other(s), none(s);
    both.backward();
    const auto run = [](problem& p, const mix_gradients& gradients) {
        mix_backward({}, p.weights, p.modules, p.mixed, gradients);
    };
    run(one, {one.d_modules, {}});
    run(other, {{}, other.d_weights});
    CHECK(compare_bitwise(one.d_modules.ref(), both.d_modules.ref()));
    CHECK(compare_bitwise(other.d_weights.ref(), both.d_weights.ref()));
    CHECK(compare_bitwise(one.d_weights.ref(), none.d_weights.ref()));
    CHECK(compare_bitwise(other.d_modules.ref(), none.d_modules.ref()));
    run(none, {});
    CHECK(compare_bitwise(none.d_weights.ref(), one.d_weights.ref()));
}

TEST_CASE("what has weight 0 is not read, as documented") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        guarded_tensor<3> weights(type, {2, 1, 2});
        guarded_tensor<4> modules(type, {1, 2, 2, 2}), mixed(type, {2, 1, 2, 2});
        guarded_tensor<4> d_modules(type, {1, 2, 2, 2});
        weights.fill(0);
        set_element(weights.ref(), {0, 0, 1}, 0.5);
        set_element(weights.ref(), {1, 0, 1}, 0.25);
        // Module 0 keeps the NaN that it was made with.
        transform_elements(modules.ref().block(1, 1, 1), [](double) { return 8; });
        mix_forward({}, weights, modules, mixed);
        for_each_position(mixed.extents(), [&](const position<4>& at) {
            CHECK(element(mixed.ref(), at) == (at[0] == 0 ? 4 : 2));
        });
        weights.fill(0);
        d_modules.fill(1);
        const guarded_tensor<4> not_numbers(type, {2, 1, 2, 2});
        mix_backward({}, weights, modules, not_numbers, {d_modules, {}});
        for_each_position(d_modules.extents(),
                          [&](const position<4>& at) { CHECK(element(d_modules.ref(), at) == 1); });
    }
}

TEST_CASE("an extent of 0 anywhere") {
    for (const sizes& s :
         {sizes{0, 2, 3, 4, 5}, sizes{2, 0, 3, 4, 5}, sizes{2, 2, 3, 0, 5}, sizes{2, 2, 3, 4, 0}}) {
        problem p(s);
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
    problem p({2, 2, 0, 2, 2});
    p.backward();
    p.forward();
    for_each_position(p.mixed.extents(),
                      [&](const position<4>& at) { CHECK(element(p.mixed.ref(), at) == 0); });
    // No memory where there is nothing to remember.
    problem q({2, 2, 3, 4, 5});
    mix_forward({}, {nullptr, f32, {0, 2, 3}}, q.modules, {nullptr, f32, {0, 2, 4, 5}});
}

TEST_CASE("equal weights of all heads are one head: MHR contains Poly") {
    const index_t heads = 3;
    guarded_tensor<3> weights(f64, {2, 1, 4});
    guarded_tensor<4> modules(f64, {1, 4, 6, 5}), one(f64, {2, 1, 6, 5}), many(f64, {2, 3, 2, 5});
    random_source random(11);
    weights.fill(random);
    modules.fill(random);
    mix_forward({}, weights, modules, one);
    // [1, m, p, q] seen as [heads, m, p / heads, q].
    const auto blocks = modules.ref().slice(0, 0).split(1, heads).transpose(0, 1);
    const auto w = weights.ref();
    const const_tensor_ref<3> repeated(w.data(), f64, {2, heads, 4}, {w.stride(0), 0, w.stride(2)});
    mix_forward({}, repeated, blocks, many);
    CHECK(compare_bitwise(many.ref(), one.ref().slice(1, 0).split(1, heads)));
}

TEST_CASE("the gradients of mixing agree with finite differences") {
    problem p({2, 2, 3, 3, 4}, all_of_type(f64));
    const auto cotangent = values_as<double>(p.mixed.ref());
    p.d_modules.fill(0);
    p.d_weights.fill(0);
    p.backward();
    const auto loss = [&] {
        p.forward();
        return contract<double>(values_as<double>(p.mixed.ref()).view(), cotangent.view());
    };
    // The function is linear in each argument; the differences lose 1e-11.
    const auto bound = within(f64, 1e-11 / precision_of(f64).epsilon);
    const auto d_modules = central_difference_gradient(loss, p.modules.ref().as<double>());
    const auto d_weights = central_difference_gradient(loss, p.weights.ref().as<double>());
    const auto ones = [](auto result) {
        for (auto& value : result.values())
            value = 1;
        return result;
    };
    CHECK(compare(p.d_modules.ref(), d_modules.view(), ones(d_modules).view(), bound));
    CHECK(compare(p.d_weights.ref(), d_weights.view(), ones(d_weights).view(), bound));
}

TEST_CASE("planted bugs of a mixture are found") {
    const sizes s{3, 2, 5, 7, 3};
    problem p(s);
    const auto want = oracle(p);
    const auto good = [&] {
        return compare(p.mixed.ref(), want.mixed.view(), want.mixed_size.view(),
                       sum_of(f32, s.modules))
            .ok;
    };
    p.forward();
    CHECK(good());
    const position<4> one{2, 1, 6, 2};
    const double right = element(p.mixed.ref(), one);
    const auto good_with = [&](double value) {
        set_element(p.mixed.ref(), one, value);
        return good();
    };
    CHECK_FALSE(good_with(-right));
    CHECK_FALSE(good_with(right * (1 + 40 * precision_of(f32).epsilon)));
    CHECK((is_fast_math || !good_with(std::numeric_limits<double>::quiet_NaN())));
    CHECK(good_with(right));
    // The weights of another head, and a transposed block.
    const auto w = p.weights.ref();
    mix_forward({}, {w.address_of(0, 1, 0), f32, {3, 2, 5}, {10, -5, 1}}, p.modules, p.mixed);
    CHECK_FALSE(good());
    mix_forward({}, w, {p.modules.ref().data(), f32, {2, 5, 7, 3}, {105, 21, 1, 7}}, p.mixed);
    CHECK_FALSE(good());
}

TEST_CASE("bad input of mix_forward") {
    problem p({3, 2, 4, 5, 6});
    const const_tensor_ref<3> w = p.weights;
    const const_tensor_ref<4> m = p.modules;
    const tensor_ref<4> y = p.mixed;
    const auto refused = [&](const char* argument, const const_tensor_ref<3>& weights,
                             const const_tensor_ref<4>& modules, const tensor_ref<4>& mixed) {
        return refuses(
            "mix_forward", argument, [&] { mix_forward({}, weights, modules, mixed); }, p.mixed);
    };
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("weights", bad.ref, m, y));
    }
    for (const auto& bad : bad_as_input(m, {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refused("modules", w, bad.ref, y));
    }
    for (const auto& bad : bad_as_output(y)) {
        CAPTURE(bad.what);
        CHECK(refused("mixed", w, m, bad.ref));
    }
}

TEST_CASE("bad input of mix_backward") {
    problem p({3, 2, 4, 5, 6});
    const const_tensor_ref<3> w = p.weights;
    const const_tensor_ref<4> m = p.modules, d = p.mixed;
    const mix_gradients good{p.d_modules, p.d_weights};
    const auto refused = [&](const char* argument, const const_tensor_ref<3>& weights,
                             const const_tensor_ref<4>& modules, const const_tensor_ref<4>& d_mixed,
                             const mix_gradients& gradients) {
        return refuses(
            "mix_backward", argument,
            [&] { mix_backward({}, weights, modules, d_mixed, gradients); }, p.d_modules,
            p.d_weights);
    };
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("weights", bad.ref, m, d, good));
    }
    for (const auto& bad : bad_as_input(m, {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refused("modules", w, bad.ref, d, good));
    }
    for (const auto& bad : bad_as_input(d)) {
        CAPTURE(bad.what);
        CHECK(refused("d_mixed", w, m, bad.ref, good));
    }
    for (const auto& bad : bad_as_output(good.modules)) {
        CAPTURE(bad.what);
        CHECK(refused("gradients.modules", w, m, d, {bad.ref, good.weights}));
    }
    for (const auto& bad : bad_as_output(good.weights)) {
        CAPTURE(bad.what);
        CHECK(refused("gradients.weights", w, m, d, {good.modules, bad.ref}));
    }
}
