#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/row_mixing.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/guarded_tensor.hpp"
#include "support/kernel_cases.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

struct shape {
    index_t rows, modules, rank, n;
};
struct storage {
    element_type weights, matrices, y;
};
struct layouts {
    layout hidden, weights, matrices, y;
};

constexpr double factor = 0.375;

/// Numbers of `count` rows of twice as many, in no order.
std::vector<index_t> some_rows(index_t count) {
    auto rows = random_source(5).permutation(2 * count);
    rows.resize(static_cast<std::size_t>(count));
    return rows;
}

/// hidden [rows, modules, rank] of the type of sums, weights [rows, modules], matrices
/// [modules, rank, n] and y [rows, n]. A third of the weights is 0.
template <class A>
struct problem {
    shape s;
    std::vector<index_t> rows;
    guarded_tensor<3> hidden;
    guarded_tensor<2> weights;
    guarded_tensor<3> matrices;
    guarded_tensor<2> y;

    explicit problem(const shape& sizes,
                     const storage& t = {element_type_of_v<A>, element_type_of_v<A>,
                                         element_type_of_v<A>},
                     const layouts& o = {})
        : s(sizes), rows(some_rows(s.rows)),
          hidden(element_type_of_v<A>, {2 * s.rows, s.modules, s.rank}, o.hidden),
          weights(t.weights, {2 * s.rows, s.modules}, o.weights),
          matrices(t.matrices, {s.modules, s.rank, s.n}, o.matrices),
          y(t.y, {2 * s.rows, s.n}, o.y) {
        random_source random(97);
        fill_exactly(hidden.ref(), random);
        fill_exactly(weights.ref(), random);
        for (index_t row = 0; row < 2 * s.rows; ++row)
            for (index_t m = row % 3; m < s.modules; m += 3)
                set_element(weights.ref(), {row, m}, 0);
        fill_exactly(matrices.ref(), random);
        fill_exactly(y.ref(), random);
    }
    [[nodiscard]] row_set set() const { return {rows.data(), s.rows}; }
    [[nodiscard]] bool is_of_set(index_t row) const {
        return std::find(rows.begin(), rows.end(), row) != rows.end();
    }
    void run(double f = factor) { run(set(), f); }
    void run(row_set of_rows, double f) {
        kernels::expand_rows<default_arch, A>(of_rows, hidden.const_ref().template as<A>(), weights,
                                              matrices, f, y);
    }
};

/// The oracle's y, and the magnitudes of its terms.
template <class S>
struct expectation {
    tensor<S, 2> want, size;
};

template <class A>
expectation<oracle_t<A>> oracle(const problem<A>& p) {
    using S = oracle_t<A>;
    expectation<S> e{values_as<S>(p.y.const_ref()), magnitudes_as<S>(p.y.const_ref())};
    for (index_t row : p.rows)
        for (index_t j = 0; j < p.s.n; ++j)
            for (index_t m = 0; m < p.s.modules; ++m)
                for (index_t k = 0; k < p.s.rank; ++k) {
                    const S term = S(factor) *
                                   static_cast<S>(element(p.weights.const_ref(), {row, m})) *
                                   static_cast<S>(element(p.hidden.const_ref(), {row, m, k})) *
                                   static_cast<S>(element(p.matrices.const_ref(), {m, k, j}));
                    e.want(row, j) += term;
                    e.size(row, j) += std::abs(term);
                }
    return e;
}

template <class A>
error_bound bound_of(const shape& s) {
    return within<A>(static_cast<double>(s.modules * s.rank) / 2 + 4);
}

template <class A>
double check(const shape& s, const storage& types, const layouts& o) {
    CAPTURE(s.rows);
    CAPTURE(s.modules);
    CAPTURE(s.rank);
    CAPTURE(s.n);
    CAPTURE(std::string(name_of(types.weights)));
    CAPTURE(std::string(name_of(types.matrices)));
    CAPTURE(std::string(name_of(types.y)));
    CAPTURE(name_of(o.hidden));
    CAPTURE(name_of(o.matrices));
    CAPTURE(name_of(o.y));
    problem<A> p(s, types, o);
    const auto e = oracle(p);
    p.run();
    CHECK(p.y.intact());
    const comparison result =
        compare(p.y.ref(), e.want.const_view(), e.size.const_view(), bound_of<A>(s));
    CHECK(result);

    // The same bits as of dense tensors of the type of sums, rounded; rows that are not of the set
    // keep theirs.
    problem<A> plain(s);
    plain.run();
    guarded_tensor<2> rounded(types.y, p.y.extents());
    round_to(rounded.ref(), plain.y.ref());
    CHECK(compare_bitwise(p.y.ref(), rounded.ref()));
    return result.worst_ratio;
}

template <class A>
void check_all() {
    constexpr element_type sums = element_type_of_v<A>;
    // Round the 48 rows, 128 columns and 16 terms that are computed together.
    const shape shapes[] = {{1, 1, 1, 1},     {47, 2, 4, 127}, {48, 3, 16, 128},
                            {49, 4, 17, 129}, {3, 9, 33, 40},  {2, 2, 5, 300}};
    double worst = 0;
    for_each_type_of_three(sums, shapes, [&](const shape& s, const auto& t, const auto& o) {
        worst = std::max(worst, check<A>(s, {t[0], t[1], t[2]}, {o[0], o[1], o[2], o[3]}));
    });
    for_each_layout_of_three([](layout a, layout b, layout c) {
        check<A>({3, 3, 17, 131}, {sums, sums, sums}, {a, b, b, c});
    });
    CHECK(worst > 0.05);
}

} // namespace

TEST_CASE("each row mixes modules with weights of its own, of every type and layout") {
    check_all<float>();
    check_all<double>();
}

TEST_CASE("a pair of a row and a module of weight 0 is not computed") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16}) {
        problem<float> good({5, 4, 3, 37}, {type, type, element_type::f32});
        problem<float> bad({5, 4, 3, 37}, {type, type, element_type::f32});
        // One module that no row uses, and one that all but one row use.
        for (problem<float>* p : {&good, &bad})
            for (index_t row = 0; row < 10; ++row) {
                set_element(p->weights.ref(), {row, 1}, 0);
                set_element(p->weights.ref(), {row, 2}, row == bad.rows[3] ? 0 : 1);
            }
        transform_elements(bad.matrices.ref().slice(0, 1), [&](double) { return nan; });
        set_element(bad.hidden.ref(), {bad.rows[3], 2, 0}, nan);
        good.run();
        bad.run();
        CHECK(compare_bitwise(bad.y.ref(), good.y.ref()));
        set_element(bad.weights.ref(), {bad.rows[3], 2}, 1);
        bad.run();
        for (index_t row : bad.rows)
            CHECK(std::isnan(element(bad.y.ref(), {row, 0})) == (row == bad.rows[3]));
    }
}

TEST_CASE("rows do not depend on those computed beside them") {
    for (element_type type : {element_type::f32, element_type::bf16}) {
        problem<float> together({33, 3, 19, 70}, {type, type, type});
        problem<float> alone({33, 3, 19, 70}, {type, type, type});
        together.run();
        for (auto row = alone.rows.rbegin(); row != alone.rows.rend(); ++row)
            alone.run({&*row, 1}, factor);
        CHECK(compare_bitwise(alone.y.ref(), together.y.ref()));
    }
}

TEST_CASE("an output is rounded once, after the sum over all modules") {
    // Each module's output alone would be lost.
    problem<float> p({2, 16, 1, 5}, {element_type::f32, element_type::f32, element_type::bf16});
    p.hidden.fill(1);
    p.weights.fill(1);
    p.matrices.fill(0x1p-10);
    p.y.fill(1);
    p.run(1);
    for (index_t row = 0; row < 4; ++row)
        for (index_t j = 0; j < 5; ++j)
            CHECK(element(p.y.ref(), {row, j}) == (p.is_of_set(row) ? 1 + 0x1p-6 : 1));
}

TEST_CASE("nothing is added where there is nothing") {
    for (const shape& s : {shape{3, 0, 4, 5}, {3, 2, 0, 5}, {3, 2, 4, 0}, {0, 2, 4, 5}}) {
        problem<float> p(s);
        const snapshot before = p.y.take_snapshot();
        p.run();
        CHECK(p.y.unchanged_since(before));
    }
}

TEST_CASE("planted bugs of expand_rows are found") {
    const shape s{5, 4, 3, 37};
    const auto good_after = [&](auto&& plant) {
        problem<float> p(s);
        const auto e = oracle(p);
        plant(p);
        return compare(p.y.ref(), e.want.const_view(), e.size.const_view(), bound_of<float>(s)).ok;
    };
    using bug_problem = problem<float>;
    CHECK(good_after([](bug_problem& p) { p.run(); }));
    CHECK_FALSE(good_after([](bug_problem&) {}));
    CHECK_FALSE(good_after([](bug_problem& p) { p.run(1); }));
    CHECK_FALSE(good_after([](bug_problem& p) { p.run(-factor); }));
    CHECK_FALSE(good_after([](bug_problem& p) { p.run({p.rows.data(), 4}, factor); }));
    CHECK_FALSE(good_after([](bug_problem& p) {
        set_element(p.weights.ref(), {p.rows[4], 2}, 0);
        set_element(p.weights.ref(), {p.rows[4], 1}, 0);
        p.run();
    }));
}

namespace {

/// shrink_along_rank against the oracle, with the same bits for each type and layout.
template <class A>
void check_shrink(index_t count, index_t n, index_t rank, element_type stored, layout of_x,
                  layout of_a) {
    CAPTURE(count);
    CAPTURE(n);
    CAPTURE(rank);
    CAPTURE(std::string(name_of(stored)));
    CAPTURE(name_of(of_a));
    using S = oracle_t<A>;
    const auto rows = some_rows(count);
    const auto run = [&](const guarded_tensor<2>& x, const guarded_tensor<2>& a) {
        guarded_tensor<2> hidden(element_type_of_v<A>, {2 * count, rank});
        hidden.fill(7);
        kernels::shrink_along_rank<default_arch, A>({rows.data(), count}, x, a,
                                                    hidden.ref().template as<A>());
        CHECK(hidden.intact());
        return values_as<S>(hidden.const_ref());
    };
    guarded_tensor<2> x(stored, {2 * count, n}, of_x), a(stored, {n, rank}, of_a);
    guarded_tensor<2> dense_x(element_type_of_v<A>, x.extents());
    guarded_tensor<2> dense_a(element_type_of_v<A>, a.extents());
    random_source random(11);
    fill_exactly(x.ref(), random);
    fill_exactly(a.ref(), random);
    round_to(dense_x.ref(), x.ref());
    round_to(dense_a.ref(), a.ref());
    auto got = run(x, a);
    auto of_dense = run(dense_x, dense_a);
    CHECK(got.values() == of_dense.values());
    tensor<S, 2> want(got.extents()), size(got.extents());
    for (index_t row = 0; row < 2 * count; ++row)
        for (index_t k = 0; k < rank; ++k) {
            const bool is_of_set = std::find(rows.begin(), rows.end(), row) != rows.end();
            want(row, k) = is_of_set ? 0 : 7;
            size(row, k) = want(row, k);
            for (index_t i = 0; is_of_set && i < n; ++i) {
                const S term = static_cast<S>(element(x.const_ref(), {row, i})) *
                               static_cast<S>(element(a.const_ref(), {i, k}));
                want(row, k) += term;
                size(row, k) += std::abs(term);
            }
        }
    CHECK(compare(got.view(), want.const_view(), size.const_view(),
                  within<A>(static_cast<double>(n) / 2 + 4)));
}

} // namespace

TEST_CASE("shrink along the rank, of every type and layout") {
    // Round the 48 and 12 rows, 128 features and 16 results that are computed together.
    for (const auto& [count, n, rank, unused] :
         {shape{1, 1, 1, 0}, shape{12, 127, 16, 0}, shape{13, 128, 15, 0}, shape{47, 129, 17, 0},
          shape{49, 260, 32, 0}, shape{3, 40, 5, 0}, shape{2, 0, 3, 0}}) {
        for (layout of_x : all_layouts)
            for (layout of_a : all_layouts) {
                for (element_type stored : types_beside(element_type::f32))
                    check_shrink<float>(count, n, rank, stored, of_x, of_a);
                check_shrink<double>(count, n, rank, element_type::f64, of_x, of_a);
            }
    }
}
