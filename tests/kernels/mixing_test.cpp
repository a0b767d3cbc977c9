#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/mixing.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/guarded_tensor.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

// What every host sees of the mixing is in lora/mixing_test.cpp: here are the shapes and strides at
// which the kernel does something else.

using namespace mhr;
using namespace mhr::test;

namespace {

/// This says how each tensor is stored: weights, modules, what is mixed, and the gradients of the
/// first two.
struct storage {
    element_type weights, modules, mixed, d_weights, d_modules;
};
constexpr storage same(element_type type) {
    return {type, type, type, type, type};
}

constexpr element_type f32 = element_type::f32;
constexpr element_type f64 = element_type::f64;
constexpr element_type of_bf16 = element_type::bf16;
constexpr element_type of_f16 = element_type::f16;

// Several of all combinations beside sums of f32, in which each argument has each type; and some of
// f64, where one of the arguments or several are.
const std::vector<storage> storages_of_f32{same(f32),
                                           {f32, of_bf16, of_f16, f32, of_bf16},
                                           {of_bf16, of_f16, f32, f32, of_bf16},
                                           {of_f16, f32, of_bf16, of_bf16, of_f16},
                                           {f32, of_bf16, of_bf16, of_f16, f32},
                                           same(of_f16)};
const std::vector<storage> storages_of_f64{same(f64),
                                           {f64, of_bf16, f32, f64, of_bf16},
                                           {f32, f64, of_f16, of_f16, f64},
                                           {of_bf16, of_f16, f64, f32, f32},
                                           {of_f16, f32, f32, f64, of_bf16}};

struct sizes {
    index_t entries, modules, p, q;
};

/// How matrices lie in memory.
enum class matrix_order { rows, columns, padded_rows, padded_columns };

constexpr std::array<matrix_order, 4> all_orders{matrix_order::rows, matrix_order::columns,
                                                 matrix_order::padded_rows,
                                                 matrix_order::padded_columns};

struct orders {
    matrix_order of_modules, of_mixed, of_gradients;
};

/// Matrices [items, P, Q], contiguous or padded, of dense rows or dense columns.
struct matrices {
    guarded_tensor<3> memory;
    tensor_ref<3> ref;

    matrices(element_type type, index_t items, index_t p, index_t q, matrix_order order)
        : memory(type, {items, is_of_rows(order) ? p : q, is_of_rows(order) ? q : p},
                 order == matrix_order::rows || order == matrix_order::columns ? layout::row_major
                                                                               : layout::padded),
          ref(is_of_rows(order) ? memory.ref() : memory.ref().transpose(1, 2)) {}

    static bool is_of_rows(matrix_order order) {
        return order == matrix_order::rows || order == matrix_order::padded_rows;
    }
    void fill(random_source& random) {
        transform_elements(ref, [&](double) { return random.uniform(-1, 1); });
    }
};

/// Buffers of one call, of random values; a fifth of the weights is 0 (modules switched off).
template <class A>
struct problem {
    sizes s;
    guarded_tensor<2> weights;
    matrices modules;
    matrices mixed; // the result of the forward, or d_mixed
    matrices d_modules;
    guarded_tensor<2> d_weights;

    explicit problem(const sizes& shape, const orders& o = {},
                     const storage& t = same(element_type_of_v<A>))
        : s(shape), weights(t.weights, {s.entries, s.modules}),
          modules(t.modules, s.modules, s.p, s.q, o.of_modules),
          mixed(t.mixed, s.entries, s.p, s.q, o.of_mixed),
          d_modules(t.d_modules, s.modules, s.p, s.q, o.of_gradients),
          d_weights(t.d_weights, {s.entries, s.modules}) {
        random_source random(7);
        weights.fill(random);
        switch_some_off(random);
        for (matrices* m : {&modules, &mixed, &d_modules})
            m->fill(random);
        d_weights.fill(random);
    }

    void fill_exactly() {
        random_source random(9);
        test::fill_exactly(weights.ref(), random);
        switch_some_off(random);
        for (const tensor_ref<3>& m : {modules.ref, mixed.ref, d_modules.ref})
            test::fill_exactly(m, random);
        test::fill_exactly(d_weights.ref(), random);
    }

    void forward() { kernels::mix_matrices<default_arch, A>(weights, modules.ref, mixed.ref); }
    void backward() {
        kernels::mix_matrices_backward<default_arch, A>(weights, modules.ref, mixed.ref,
                                                        d_modules.ref, d_weights);
    }
    [[nodiscard]] bool intact() const {
        return mixed.memory.intact() && d_modules.memory.intact() && d_weights.intact();
    }

  private:
    void switch_some_off(random_source& random) {
        transform_elements(weights.ref(), [&](double w) { return random.integer(5) == 0 ? 0 : w; });
    }
};

/// A head of its own, as the oracle wants it: [n, .., ..] seen as [n, 1, .., ..] or [1, n, .., ..].
template <class T, std::size_t Rank>
tensor_view<T, Rank + 1> with_head(const tensor_view<T, Rank>& view) {
    return view.prepend_axis().transpose(0, 1);
}

/// The oracle's results and their magnitudes.
template <class S>
struct expectation {
    tensor<S, 3> mixed, mixed_size, d_modules, d_modules_size;
    tensor<S, 2> d_weights, d_weights_size;
};

template <class A>
expectation<oracle_t<A>> oracle(problem<A>& p) {
    using S = oracle_t<A>;
    const auto run = [](const auto& w, const auto& m, const auto& d, auto& mixed, auto& d_m,
                        auto& d_w) {
        mixed = tensor<S, 3>(d.extents());
        reference::mix_forward(with_head(w.const_view()), m.const_view().prepend_axis(),
                               with_head(mixed.view()));
        reference::mix_backward(with_head(w.const_view()), m.const_view().prepend_axis(),
                                with_head(d.const_view()), d_m.view().prepend_axis(),
                                with_head(d_w.view()));
    };
    expectation<S> e;
    e.d_modules = values_as<S>(p.d_modules.ref);
    e.d_weights = values_as<S>(p.d_weights.ref());
    e.d_modules_size = magnitudes_as<S>(p.d_modules.ref);
    e.d_weights_size = magnitudes_as<S>(p.d_weights.ref());
    run(values_as<S>(p.weights.ref()), values_as<S>(p.modules.ref), values_as<S>(p.mixed.ref),
        e.mixed, e.d_modules, e.d_weights);
    run(magnitudes_as<S>(p.weights.ref()), magnitudes_as<S>(p.modules.ref),
        magnitudes_as<S>(p.mixed.ref), e.mixed_size, e.d_modules_size, e.d_weights_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 1);
}

template <class A>
void check_against_oracle(const sizes& s, const orders& o, const storage& types) {
    CAPTURE(s.entries);
    CAPTURE(s.modules);
    CAPTURE(s.p);
    CAPTURE(s.q);
    CAPTURE(static_cast<int>(o.of_modules));
    CAPTURE(static_cast<int>(o.of_mixed));
    CAPTURE(static_cast<int>(o.of_gradients));
    CAPTURE(std::string(name_of(types.weights)));
    CAPTURE(std::string(name_of(types.modules)));
    CAPTURE(std::string(name_of(types.mixed)));
    problem<A> p(s, o, types);
    const auto want = oracle(p);
    p.backward();
    auto of_entries = sum_of<A>(s.entries);
    // The sums of each group of entries are rounded as they are stored.
    of_entries.sum_roundings += static_cast<double>((s.entries - 1) / kernels::entry_group) *
                                precision_of(types.d_modules).epsilon / of_entries.sum_epsilon;
    CHECK(compare(p.d_modules.ref, want.d_modules.view(), want.d_modules_size.view(), of_entries));
    CHECK(compare(p.d_weights.ref(), want.d_weights.view(), want.d_weights_size.view(),
                  sum_of<A>(s.p * s.q)));
    p.forward();
    CHECK(compare(p.mixed.ref, want.mixed.view(), want.mixed_size.view(), sum_of<A>(s.modules)));
    CHECK(p.intact());
}

matrix_order order_of(int number) {
    return all_orders[static_cast<std::size_t>(number % 4)];
}

template <class A>
void check_every_size(const std::vector<storage>& storages) {
    // Round the lanes, the 4 and 16 rows and the parts of matrices; few and many entries and
    // modules.
    constexpr sizes shapes[] = {
        {2, 3, 1, 1},   {9, 8, 1, 5},    {33, 17, 1, 16}, {3, 2, 1, 1030}, {2, 9, 5, 1},
        {4, 5, 5, 17},  {1, 1, 5, 300},  {7, 8, 15, 15},  {2, 3, 15, 65},  {40, 9, 16, 1},
        {3, 4, 16, 16}, {2, 3, 16, 64},  {65, 3, 17, 5},  {3, 9, 17, 17},  {2, 2, 17, 300},
        {3, 2, 64, 16}, {2, 16, 64, 17}, {8, 1, 65, 15},  {2, 2, 65, 65},  {2, 3, 300, 5},
        {3, 2, 300, 1}, {1, 2, 300, 17}, {2, 2, 1030, 1}, {2, 1, 1030, 5}, {1, 3, 64, 64},
    };
    for (const storage& types : storages) {
        int number = 0;
        for (const sizes& s : shapes)
            for (int i = 0; i < 2; ++i, number += 5)
                // All 64 combinations of orders, some for each shape.
                check_against_oracle<A>(
                    s, {order_of(number), order_of(number / 4), order_of(number / 16)}, types);
    }
}

template <class A>
void check_every_order(const std::vector<storage>& storages) {
    for (const storage& types : storages)
        for (matrix_order of_modules : all_orders)
            for (matrix_order of_mixed : all_orders)
                for (matrix_order of_gradients : all_orders) {
                    const orders o{of_modules, of_mixed, of_gradients};
                    // More entries than modules, and fewer; beyond the groups of both; rows that
                    // are short, and whole vectors.
                    check_against_oracle<A>({4, 3, 17, 20}, o, types);
                    check_against_oracle<A>({5, 3, 20, 32}, o, types);
                    check_against_oracle<A>({3, 9, 20, 33}, o, types);
                    check_against_oracle<A>({34, 10, 3, 18}, o, types);
                }
}

} // namespace

TEST_CASE("matrices of every size") {
    check_every_size<float>(storages_of_f32);
    check_every_size<double>(storages_of_f64);
}

TEST_CASE("matrices in every order") {
    check_every_order<float>({storages_of_f32[0] MHR_TEST_ALSO(storages_of_f32[3])});
    check_every_order<double>({storages_of_f64[1]});
}

namespace {

// The same numbers, stored as `types` and in these orders or densely in the type of sums.
template <class A>
void check_same_bits(const sizes& s, const orders& o, const storage& types) {
    CAPTURE(s.entries);
    CAPTURE(s.modules);
    CAPTURE(s.p);
    CAPTURE(s.q);
    CAPTURE(static_cast<int>(o.of_modules));
    CAPTURE(static_cast<int>(o.of_mixed));
    CAPTURE(static_cast<int>(o.of_gradients));
    CAPTURE(std::string(name_of(types.weights)));
    CAPTURE(std::string(name_of(types.modules)));
    CAPTURE(std::string(name_of(types.mixed)));
    CAPTURE(std::string(name_of(types.d_weights)));
    CAPTURE(std::string(name_of(types.d_modules)));
    problem<A> plain(s), other(s, o, types);
    // The sums of the gradient of weights run along the memory of the inventory, in parts that
    // depend on whether it needs to be converted: it is compared with that of the same inventory.
    constexpr element_type sums = element_type_of_v<A>;
    problem<A> in_order(s, o, {sums, types.modules, sums, sums, sums});
    for (problem<A>* p : {&plain, &other, &in_order}) {
        p->fill_exactly();
        p->backward();
    }
    matrices d_modules(types.d_modules, s.modules, s.p, s.q, matrix_order::rows);
    round_to(d_modules.ref, plain.d_modules.ref);
    CHECK(compare_bitwise(other.d_modules.ref, d_modules.ref));
    guarded_tensor<2> d_weights(types.d_weights, {s.entries, s.modules});
    round_to(d_weights.ref(), in_order.d_weights.ref());
    CHECK(compare_bitwise(other.d_weights.ref(), d_weights.ref()));
    for (problem<A>* p : {&plain, &other}) {
        p->fill_exactly();
        p->forward();
    }
    matrices mixed(types.mixed, s.entries, s.p, s.q, matrix_order::rows);
    round_to(mixed.ref, plain.mixed.ref);
    CHECK(compare_bitwise(other.mixed.ref, mixed.ref));
    CHECK(other.intact());
}

template <class A>
void check_same_bits() {
    constexpr element_type sums = element_type_of_v<A>;
    int number = 0;
    for (element_type a : types_beside(sums))
        for (element_type b : types_beside(sums))
            for (element_type c : types_beside(sums)) {
                // Few entries, to which 16-bit runs are widened on the way, and more; parts that
                // need no copy (16 x 16), and others; more modules than a group.
                for (const sizes& s : {sizes{3, 3, 16, 16},
                                       {9, 2, 16, 16},
                                       {2, 9, 5, 33},
                                       {12, 3, 20, 7},
                                       {2, 2, 3, 600}}) {
                    ++number;
                    check_same_bits<A>(
                        s, {order_of(number), order_of(number / 4), order_of(number / 16)},
                        {a, b, c, a, c});
                    check_same_bits<A>(s, {}, {c, a, b, b, a});
                }
            }
}

} // namespace

TEST_CASE("the same numbers give the same bits in every type and order") {
    check_same_bits<float>();
    check_same_bits<double>();
}

TEST_CASE("entries and modules do not depend on those computed beside them") {
    const sizes s{35, 10, 18, 23};
    for (const storage& types : {same(f32), {of_bf16, of_f16, of_bf16, f32, f32}})
        for (matrix_order of_modules : all_orders)
            for (matrix_order of_mixed : all_orders) {
                CAPTURE(std::string(name_of(types.weights)));
                CAPTURE(static_cast<int>(of_modules));
                CAPTURE(static_cast<int>(of_mixed));
                const orders o{of_modules, of_mixed, of_modules};
                problem<float> together(s, o, types), alone(s, o, types);
                together.backward();
                for (index_t n = 0; n < s.entries; ++n)
                    kernels::mix_matrices_backward<default_arch, float>(
                        alone.weights.ref().block(0, n, 1), alone.modules.ref,
                        alone.mixed.ref.block(0, n, 1), {}, alone.d_weights.ref().block(0, n, 1));
                for (index_t m = 0; m < s.modules; ++m)
                    kernels::mix_matrices_backward<default_arch, float>(
                        alone.weights.ref().block(1, m, 1), alone.modules.ref.block(0, m, 1),
                        alone.mixed.ref, alone.d_modules.ref.block(0, m, 1), {});
                CHECK(compare_bitwise(alone.d_weights.ref(), together.d_weights.ref()));
                CHECK(compare_bitwise(alone.d_modules.ref, together.d_modules.ref));

                together.forward();
                for (index_t first = 0, count = 1; first < s.entries; first += count, ++count) {
                    count = std::min(count, s.entries - first);
                    kernels::mix_matrices<default_arch, float>(
                        alone.weights.ref().block(0, first, count), alone.modules.ref,
                        alone.mixed.ref.block(0, first, count));
                }
                CHECK(compare_bitwise(alone.mixed.ref, together.mixed.ref));
            }
}

TEST_CASE("parts of matrices may be mixed by themselves") {
    // What the threads of a forward do.
    const sizes s{5, 10, 40, 33};
    for (matrix_order of_modules : all_orders)
        for (matrix_order of_mixed : all_orders) {
            const orders o{of_modules, of_mixed, of_modules};
            problem<float> whole(s, o), parts(s, o);
            whole.forward();
            for (index_t first : {0, 16, 32}) {
                const index_t count = std::min<index_t>(16, s.p - first);
                kernels::mix_matrices<default_arch, float>(parts.weights.ref(),
                                                           parts.modules.ref.block(1, first, count),
                                                           parts.mixed.ref.block(1, first, count));
            }
            CHECK(compare_bitwise(parts.mixed.ref, whole.mixed.ref));
        }
}

TEST_CASE("what has weight 0 is not read, whatever it holds") {
    // A module of NaN, and one of infinities, that only entry 2 uses: without and with copies.
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double infinity = std::numeric_limits<double>::infinity();
    const sizes s{4, 11, 18, 21};
    const auto fill = [](const tensor_ref<2>& matrix, double value) {
        transform_elements(matrix, [&](double) { return value; });
    };
    for (const storage& types :
         {same(f32), {f32, of_f16, of_bf16, f32, f32}, {of_f16, of_bf16, f32, f32, of_bf16}})
        for (matrix_order order : all_orders) {
            CAPTURE(std::string(name_of(types.modules)));
            CAPTURE(static_cast<int>(order));
            const orders o{order, matrix_order::rows, order};
            problem<float> good(s, o, types), bad(s, o, types);
            for (problem<float>* p : {&good, &bad})
                for (index_t n = 0; n < s.entries; ++n)
                    for (index_t m : {1, 9})
                        set_element(p->weights.ref(), {n, m}, n == 2 ? 1 : 0);
            fill(bad.modules.ref.slice(0, 1), nan);
            fill(bad.modules.ref.slice(0, 9), infinity);
            good.forward();
            bad.forward();
            for (index_t n : {0, 1, 3})
                CHECK(compare_bitwise(bad.mixed.ref.slice(0, n), good.mixed.ref.slice(0, n)));
            CHECK(std::isnan(element(bad.mixed.ref, {2, 5, 5})));

            // The gradient of an entry spoils only the modules that the entry uses.
            problem<float> clean(s, o, types), spoilt(s, o, types);
            for (problem<float>* p : {&clean, &spoilt})
                for (index_t m = 0; m < s.modules; ++m)
                    set_element(p->weights.ref(), {2, m}, m == 4 ? 1 : 0);
            fill(spoilt.mixed.ref.slice(0, 2), nan);
            clean.backward();
            spoilt.backward();
            for (index_t m = 0; m < s.modules; ++m)
                if (m != 4)
                    CHECK(compare_bitwise(spoilt.d_modules.ref.slice(0, m),
                                          clean.d_modules.ref.slice(0, m)));
            for (index_t n : {0, 1, 3})
                CHECK(compare_bitwise(spoilt.d_weights.ref().slice(0, n),
                                      clean.d_weights.ref().slice(0, n)));
            CHECK(std::isnan(element(spoilt.d_modules.ref, {4, 5, 5})));
            CHECK(std::isnan(element(spoilt.d_weights.ref(), {2, 1})));
        }
}

TEST_CASE("a gradient that is absent is not wanted, and changes nothing of the other") {
    const sizes s{5, 9, 7, 19};
    problem<float> both(s), modules_only(s), weights_only(s), none(s);
    both.backward();
    const auto backward = [](problem<float>& p, const tensor_ref<3>& d_modules,
                             const tensor_ref<2>& d_weights) {
        kernels::mix_matrices_backward<default_arch, float>(p.weights, p.modules.ref, p.mixed.ref,
                                                            d_modules, d_weights);
    };
    const snapshot modules_before = weights_only.d_modules.memory.take_snapshot();
    const snapshot weights_before = modules_only.d_weights.take_snapshot();
    // A snapshot is of one tensor: where another lies in its memory depends on the allocator.
    const snapshot nothing_before = none.d_weights.take_snapshot();
    backward(modules_only, modules_only.d_modules.ref, {});
    backward(weights_only, {}, weights_only.d_weights.ref());
    backward(none, {}, {});
    CHECK(compare_bitwise(modules_only.d_modules.ref, both.d_modules.ref));
    CHECK(compare_bitwise(weights_only.d_weights.ref(), both.d_weights.ref()));
    CHECK(weights_only.d_modules.memory.unchanged_since(modules_before));
    CHECK(modules_only.d_weights.unchanged_since(weights_before));
    CHECK(none.d_weights.unchanged_since(nothing_before));
}

TEST_CASE("parts cover a matrix once, and are no larger than may be") {
    for (const std::array<index_t, 2>& extents : {std::array<index_t, 2>{1, 1},
                                                  {1, 3000},
                                                  {3000, 1},
                                                  {15, 17},
                                                  {16, 16},
                                                  {100, 33},
                                                  {40, 200},
                                                  {64, 64},
                                                  {5, 0},
                                                  {0, 5}})
        for (index_t limit : {256, 512, 1024})
            for (index_t height : {1, 4, 16})
                for (bool whole : {false, true}) {
                    CAPTURE(to_text(extents));
                    CAPTURE(limit);
                    CAPTURE(height);
                    CAPTURE(whole);
                    tensor<int, 2> covered(extents);
                    kernels::for_parts({100, extents[0], 200, extents[1]}, limit, height, whole,
                                       [&](const kernels::matrix_part& part) {
                                           CHECK(part.size() <= limit);
                                           CHECK(part.size() > 0);
                                           if (height == 1 && !whole) CHECK(part.rows == 1);
                                           // Rows that are left over are the last ones.
                                           CHECK((part.rows % height == 0 ||
                                                  part.p + part.rows == 100 + extents[0]));
                                           for (index_t p = 0; p < part.rows; ++p)
                                               for (index_t q = 0; q < part.columns; ++q)
                                                   ++covered(part.p - 100 + p, part.q - 200 + q);
                                       });
                    CHECK(std::all_of(covered.values().begin(), covered.values().end(),
                                      [](int times) { return times == 1; }));
                }
}

TEST_CASE("planted bugs of a backward are found") {
    const sizes s{5, 9, 7, 19};
    problem<float> p(s);
    const auto want = oracle(p);
    const auto good = [&] {
        return compare(p.d_modules.ref, want.d_modules.view(), want.d_modules_size.view(),
                       sum_of<float>(s.entries)) &&
               compare(p.d_weights.ref(), want.d_weights.view(), want.d_weights_size.view(),
                       sum_of<float>(s.p * s.q));
    };
    p.backward();
    CHECK(good());
    const auto found = [&](float& target, float wrong) {
        const float right = target;
        target = wrong;
        const bool missed = good();
        target = right;
        return !missed;
    };
    float& d_module = p.d_modules.ref.as<float>()(8, 6, 18);
    float& d_weight = p.d_weights.ref().as<float>()(4, 8);
    CHECK(found(d_module, -d_module));
    CHECK(found(d_module, d_module + 0x1p-17F));
    CHECK(found(d_module, std::numeric_limits<float>::quiet_NaN()));
    CHECK(found(d_weight, -d_weight));
    CHECK(found(d_weight, d_weight + 0x1p-10F));
    CHECK(good());
    p.backward(); // twice
    CHECK_FALSE(good());
}
