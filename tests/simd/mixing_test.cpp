#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/mixing.hpp>
#include <mhr/simd/mixing.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

// What every host sees of the mixing is in mixing/mix_test.cpp: here are the shapes and strides at
// which the kernel does something else.

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;

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

struct sizes {
    index_t entries, modules, p, q;
};

/// How blocks lie in memory.
enum class block_order { rows, columns, padded_rows, padded_columns };

constexpr std::array<block_order, 4> all_orders{
    block_order::rows, block_order::columns, block_order::padded_rows, block_order::padded_columns};

struct orders {
    block_order of_modules, of_mixed, of_gradients;
};

/// Blocks [items, P, Q], contiguous or padded, of dense rows or dense columns.
template <class T>
struct blocks {
    guarded_buffer<T, 3> memory;
    tensor_view<T, 3> view;

    blocks(index_t items, index_t p, index_t q, block_order order)
        : memory({items, is_of_rows(order) ? p : q, is_of_rows(order) ? q : p},
                 order == block_order::rows || order == block_order::columns ? layout::row_major
                                                                             : layout::padded),
          view(is_of_rows(order) ? memory.view() : memory.view().transpose(1, 2)) {}

    static bool is_of_rows(block_order order) {
        return order == block_order::rows || order == block_order::padded_rows;
    }
};

/// Buffers of one call, of random values; a fifth of the weights is 0 (modules switched off).
template <class T>
struct problem {
    sizes s;
    guarded_buffer<typename T::W, 2> weights;
    blocks<typename T::M> modules;
    blocks<typename T::Y> mixed; // the result of the forward, or d_mixed
    blocks<typename T::DM> d_modules;
    guarded_buffer<typename T::DW, 2> d_weights;

    explicit problem(const sizes& shape, const orders& o = {})
        : s(shape), weights({s.entries, s.modules}), modules(s.modules, s.p, s.q, o.of_modules),
          mixed(s.entries, s.p, s.q, o.of_mixed), d_modules(s.modules, s.p, s.q, o.of_gradients),
          d_weights({s.entries, s.modules}) {
        random_source random(7);
        random.fill(weights.view());
        for_each_position(weights.view().extents(), [&](const position<2>& at) {
            if (random.integer(5) == 0) element(weights.view(), at) = typename T::W(0.F);
        });
        random.fill(modules.view);
        random.fill(mixed.view);
        random.fill(d_modules.view);
        random.fill(d_weights.view());
    }

    void forward() { detail::mix_blocks(weights.const_view(), as_const(modules.view), mixed.view); }
    void backward() {
        detail::mix_blocks_backward(weights.const_view(), as_const(modules.view),
                                    as_const(mixed.view), d_modules.view, d_weights.view());
    }
    [[nodiscard]] bool intact() const {
        return mixed.memory.intact() && d_modules.memory.intact() && d_weights.intact();
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

template <class S, class T>
expectation<S> oracle(problem<T>& p) {
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
    e.d_modules = copy_as<S>(p.d_modules.view);
    e.d_weights = copy_as<S>(p.d_weights.view());
    e.d_modules_size = magnitudes_as<S>(p.d_modules.view);
    e.d_weights_size = magnitudes_as<S>(p.d_weights.view());
    run(copy_as<S>(p.weights.view()), copy_as<S>(p.modules.view), copy_as<S>(p.mixed.view), e.mixed,
        e.d_modules, e.d_weights);
    run(magnitudes_as<S>(p.weights.view()), magnitudes_as<S>(p.modules.view),
        magnitudes_as<S>(p.mixed.view), e.mixed_size, e.d_modules_size, e.d_weights_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes.
template <class... T>
error_bound sum_of(index_t n) {
    return within<accumulator_t<T...>>(static_cast<double>(n) / 2 + 1);
}

template <class T>
void check_against_oracle(const sizes& s, const orders& o) {
    CAPTURE(s.entries);
    CAPTURE(s.modules);
    CAPTURE(s.p);
    CAPTURE(s.q);
    CAPTURE(static_cast<int>(o.of_modules));
    CAPTURE(static_cast<int>(o.of_mixed));
    CAPTURE(static_cast<int>(o.of_gradients));
    problem<T> p(s, o);
    const auto want = oracle<typename T::S>(p);
    p.backward();
    auto of_entries = sum_of<typename T::W, typename T::Y, typename T::DM>(s.entries);
    // The sums of each group of entries are rounded as they are stored.
    of_entries.sum_roundings += static_cast<double>((s.entries - 1) / detail::entry_group) *
                                epsilon_of<typename T::DM>() / of_entries.sum_epsilon;
    CHECK(compare(p.d_modules.view, want.d_modules.view(), want.d_modules_size.view(), of_entries));
    CHECK(compare(p.d_weights.view(), want.d_weights.view(), want.d_weights_size.view(),
                  sum_of<typename T::M, typename T::Y, typename T::DW>(s.p * s.q)));
    p.forward();
    CHECK(compare(p.mixed.view, want.mixed.view(), want.mixed_size.view(),
                  sum_of<typename T::W, typename T::M, typename T::Y>(s.modules)));
    CHECK(p.intact());
}

} // namespace

TEST_CASE_TEMPLATE("blocks of every size", T, storage<double, double, double>,
                   storage<float, float, float>, storage<float, bf16, half>,
                   storage<bf16, half, float, float, bf16>) {
    // Round the lanes, the 4 and 16 rows and the pieces of blocks; few and many entries and
    // modules.
    constexpr sizes shapes[] = {
        {2, 3, 1, 1},   {9, 8, 1, 5},    {33, 17, 1, 16}, {3, 2, 1, 1030}, {2, 9, 5, 1},
        {4, 5, 5, 17},  {1, 1, 5, 300},  {7, 8, 15, 15},  {2, 3, 15, 65},  {40, 9, 16, 1},
        {3, 4, 16, 16}, {2, 3, 16, 64},  {65, 3, 17, 5},  {3, 9, 17, 17},  {2, 2, 17, 300},
        {3, 2, 64, 16}, {2, 16, 64, 17}, {8, 1, 65, 15},  {2, 2, 65, 65},  {2, 3, 300, 5},
        {3, 2, 300, 1}, {1, 2, 300, 17}, {2, 2, 1030, 1}, {2, 1, 1030, 5}, {1, 3, 64, 64},
    };
    int number = 0;
    for (const sizes& s : shapes)
        for (int i = 0; i < 2; ++i, number += 5)
            // All 64 combinations of orders, some for each shape.
            check_against_oracle<T>(s, {all_orders[static_cast<std::size_t>(number % 4)],
                                        all_orders[static_cast<std::size_t>(number / 4 % 4)],
                                        all_orders[static_cast<std::size_t>(number / 16 % 4)]});
}

TEST_CASE_TEMPLATE("blocks in every order", T,
                   storage<float, float, float> MHR_TEST_ALSO(storage<half, float, bf16>)) {
    for (block_order of_modules : all_orders)
        for (block_order of_mixed : all_orders)
            for (block_order of_gradients : all_orders) {
                const orders o{of_modules, of_mixed, of_gradients};
                // More entries than modules, and fewer; beyond the groups of both; rows that are
                // short, and whole vectors.
                check_against_oracle<T>({4, 3, 17, 20}, o);
                check_against_oracle<T>({5, 3, 20, 32}, o);
                check_against_oracle<T>({3, 9, 20, 33}, o);
                check_against_oracle<T>({34, 10, 3, 18}, o);
            }
}

TEST_CASE_TEMPLATE("entries and modules do not depend on those computed beside them", T,
                   storage<float, float, float>, storage<bf16, half, bf16, float, float>) {
    const sizes s{35, 10, 18, 23};
    for (block_order of_modules : all_orders)
        for (block_order of_mixed : all_orders) {
            CAPTURE(static_cast<int>(of_modules));
            CAPTURE(static_cast<int>(of_mixed));
            const orders o{of_modules, of_mixed, of_modules};
            problem<T> together(s, o), alone(s, o);
            together.backward();
            for (index_t n = 0; n < s.entries; ++n)
                detail::mix_blocks_backward(
                    alone.weights.const_view().block(0, n, 1), as_const(alone.modules.view),
                    as_const(alone.mixed.view.block(0, n, 1)), tensor_view<typename T::DM, 3>{},
                    alone.d_weights.view().block(0, n, 1));
            for (index_t m = 0; m < s.modules; ++m)
                detail::mix_blocks_backward(
                    alone.weights.const_view().block(1, m, 1),
                    as_const(alone.modules.view.block(0, m, 1)), as_const(alone.mixed.view),
                    alone.d_modules.view.block(0, m, 1), tensor_view<typename T::DW, 2>{});
            CHECK(compare_bitwise(alone.d_weights.view(), together.d_weights.view()));
            CHECK(compare_bitwise(alone.d_modules.view, together.d_modules.view));

            together.forward();
            for (index_t first = 0, count = 1; first < s.entries; first += count, ++count) {
                count = std::min(count, s.entries - first);
                detail::mix_blocks(alone.weights.const_view().block(0, first, count),
                                   as_const(alone.modules.view),
                                   alone.mixed.view.block(0, first, count));
            }
            CHECK(compare_bitwise(alone.mixed.view, together.mixed.view));
        }
}

TEST_CASE("parts of blocks may be mixed by themselves") {
    // What the threads of a forward do.
    using T = storage<float, float, float>;
    const sizes s{5, 10, 40, 33};
    for (block_order of_modules : all_orders)
        for (block_order of_mixed : all_orders) {
            const orders o{of_modules, of_mixed, of_modules};
            problem<T> whole(s, o), parts(s, o);
            whole.forward();
            for (index_t first : {0, 16, 32}) {
                const index_t count = std::min<index_t>(16, s.p - first);
                detail::mix_blocks(parts.weights.const_view(),
                                   as_const(parts.modules.view.block(1, first, count)),
                                   parts.mixed.view.block(1, first, count));
            }
            CHECK(compare_bitwise(parts.mixed.view, whole.mixed.view));
        }
}

TEST_CASE_TEMPLATE("what has weight 0 is not read, whatever it holds", T,
                   storage<float, float, float>, storage<float, half, bf16, float, float>) {
    // A module of NaN, and one of infinities, that only entry 2 uses: without and with copies.
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    for (block_order order : all_orders) {
        CAPTURE(static_cast<int>(order));
        const sizes s{4, 11, 18, 21};
        const orders o{order, block_order::rows, order};
        problem<T> good(s, o), bad(s, o);
        for (problem<T>* p : {&good, &bad})
            for (index_t n = 0; n < s.entries; ++n)
                for (index_t m : {1, 9})
                    p->weights(n, m) = typename T::W(n == 2 ? 1.F : 0.F);
        for_each_position(std::array<index_t, 2>{s.p, s.q}, [&](const position<2>& at) {
            bad.modules.view(1, at[0], at[1]) = typename T::M(nan);
            bad.modules.view(9, at[0], at[1]) = typename T::M(infinity);
        });
        good.forward();
        bad.forward();
        for (index_t n : {0, 1, 3})
            CHECK(compare_bitwise(bad.mixed.view.slice(0, n), good.mixed.view.slice(0, n)));
        CHECK(std::isnan(load<float>(bad.mixed.view(2, 5, 5))));

        // The gradient of an entry spoils only the modules that the entry uses.
        problem<T> clean(s, o), spoilt(s, o);
        for (problem<T>* p : {&clean, &spoilt})
            for (index_t m = 0; m < s.modules; ++m)
                p->weights(2, m) = typename T::W(m == 4 ? 1.F : 0.F);
        for_each_position(std::array<index_t, 2>{s.p, s.q}, [&](const position<2>& at) {
            spoilt.mixed.view(2, at[0], at[1]) = typename T::Y(nan);
        });
        clean.backward();
        spoilt.backward();
        for (index_t m = 0; m < s.modules; ++m)
            if (m != 4)
                CHECK(compare_bitwise(spoilt.d_modules.view.slice(0, m),
                                      clean.d_modules.view.slice(0, m)));
        for (index_t n : {0, 1, 3})
            CHECK(compare_bitwise(spoilt.d_weights.view().slice(0, n),
                                  clean.d_weights.view().slice(0, n)));
        CHECK(std::isnan(load<float>(spoilt.d_modules.view(4, 5, 5))));
        CHECK(std::isnan(load<float>(spoilt.d_weights(2, 1))));
    }
}

TEST_CASE("pieces cover a block once, and are no larger than may be") {
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
                    detail::for_pieces({100, extents[0], 200, extents[1]}, limit, height, whole,
                                       [&](const detail::block_piece& piece) {
                                           CHECK(piece.size() <= limit);
                                           CHECK(piece.size() > 0);
                                           if (height == 1 && !whole) CHECK(piece.rows == 1);
                                           // Rows that are left over are the last ones.
                                           CHECK((piece.rows % height == 0 ||
                                                  piece.p + piece.rows == 100 + extents[0]));
                                           for (index_t p = 0; p < piece.rows; ++p)
                                               for (index_t q = 0; q < piece.columns; ++q)
                                                   ++covered(piece.p - 100 + p, piece.q - 200 + q);
                                       });
                    CHECK(std::all_of(covered.values().begin(), covered.values().end(),
                                      [](int times) { return times == 1; }));
                }
}

TEST_CASE("planted bugs of a backward are found") {
    using T = storage<float, float, float>;
    const sizes s{5, 9, 7, 19};
    problem<T> p(s);
    const auto want = oracle<double>(p);
    const auto good = [&] {
        return compare(p.d_modules.view, want.d_modules.view(), want.d_modules_size.view(),
                       sum_of<float>(s.entries)) &&
               compare(p.d_weights.view(), want.d_weights.view(), want.d_weights_size.view(),
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
    float& d_module = p.d_modules.view(8, 6, 18);
    float& d_weight = p.d_weights(4, 8);
    CHECK(found(d_module, -d_module));
    CHECK(found(d_module, d_module + 0x1p-17F));
    CHECK(found(d_module, std::numeric_limits<float>::quiet_NaN()));
    CHECK(found(d_weight, -d_weight));
    CHECK(found(d_weight, d_weight + 0x1p-10F));
    CHECK(good());
    p.backward(); // twice
    CHECK_FALSE(good());
}
