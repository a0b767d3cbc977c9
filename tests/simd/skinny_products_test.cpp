#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/simd/skinny_products.hpp>

#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

// All three products are out += factor left right for the rows of a set, so that one problem, one
// oracle and one sweep of shapes serve them all. They differ in what is tall, wide and narrow.

using namespace mhr;
using namespace mhr::test;

namespace {

// Storage of left, right and output.
template <class Left, class Right, class Output>
struct storage {
    using L = Left;
    using R = Right;
    using O = Output;
};

struct shape {
    index_t rows, wide, rank;
};
struct layouts {
    layout left, right, output;
};

// Small tiles are 8 and 16, large ones 64: sizes below, equal, above and multiples.
const std::vector<index_t> sizes{1, 17, 65 MHR_TEST_ALSO(2, 7, 8, 9, 15, 16, 31, 33, 63, 64, 130)};
const std::vector<index_t> row_counts{1, 2, 15, 16, 17, 33};

// Numbers of `count` rows of twice as many, in no order.
std::vector<index_t> some_rows(index_t count) {
    auto rows = random_source(static_cast<std::uint64_t>(count)).permutation(2 * count);
    rows.resize(static_cast<std::size_t>(count));
    return rows;
}

detail::row_set set_of(const std::vector<index_t>& rows) {
    return {rows.data(), static_cast<index_t>(rows.size())};
}

// The rows of a set, one below the other.
template <class S, class T>
tensor<S, 2> gather(const tensor_view<T, 2>& matrix, const std::vector<index_t>& rows) {
    tensor<S, 2> result({static_cast<index_t>(rows.size()), matrix.extent(1)});
    for (index_t r = 0; r < result.extents()[0]; ++r)
        for (index_t i = 0; i < result.extents()[1]; ++i)
            result(r, i) = load<S>(matrix(rows[static_cast<std::size_t>(r)], i));
    return result;
}

// out += factor left right, and the same of absolute values.
template <class S>
struct oracle {
    tensor<S, 2> want;
    tensor<S, 2> magnitude;

    oracle(const tensor_view<const S, 2>& left, const tensor_view<const S, 2>& right, S factor,
           const tensor<S, 2>& before)
        : want(before), magnitude(magnitudes_as<S>(before.view())) {
        for_each_position(want.extents(), [&](const position<2>& at) {
            for (index_t k = 0; k < left.extent(1); ++k) {
                const S term = factor * left(at[0], k) * right(k, at[1]);
                element(want.view(), at) += term;
                element(magnitude.view(), at) += std::abs(term);
            }
        });
    }
};

constexpr double factor = 0.375; // a number that every type can hold

// Each product knows the extents of its arguments, and how to see itself as left times right.
struct projection {
    static constexpr bool accumulates = false;
    static constexpr bool output_has_rows = true;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.wide}; }
    static std::array<index_t, 2> right(const shape& s) { return {s.wide, s.rank}; }
    static std::array<index_t, 2> output(const shape& s) { return {2 * s.rows, s.rank}; }
    static index_t terms(const shape& s) { return s.wide; }
    template <class L, class R, class O>
    static void run(detail::row_set rows, const tensor_view<L, 2>& left,
                    const tensor_view<R, 2>& right, double f, const tensor_view<O, 2>& output) {
        detail::project(rows, as_const(left), as_const(right), f,
                        output);
    }
};
struct expansion {
    static constexpr bool accumulates = true;
    static constexpr bool output_has_rows = true;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.rank}; }
    static std::array<index_t, 2> right(const shape& s) { return {s.rank, s.wide}; }
    static std::array<index_t, 2> output(const shape& s) { return {2 * s.rows, s.wide}; }
    static index_t terms(const shape& s) { return s.rank; }
    template <class L, class R, class O>
    static void run(detail::row_set rows, const tensor_view<L, 2>& left,
                    const tensor_view<R, 2>& right, double f, const tensor_view<O, 2>& output) {
        detail::expand(rows, as_const(left), as_const(right), f,
                       output);
    }
};
struct outer_products {
    static constexpr bool accumulates = true;
    static constexpr bool output_has_rows = false;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.wide}; }
    static std::array<index_t, 2> right(const shape& s) { return {2 * s.rows, s.rank}; }
    static std::array<index_t, 2> output(const shape& s) { return {s.wide, s.rank}; }
    static index_t terms(const shape& s) { return s.rows; }
    template <class L, class R, class O>
    static void run(detail::row_set rows, const tensor_view<L, 2>& left,
                    const tensor_view<R, 2>& right, double f, const tensor_view<O, 2>& output) {
        detail::add_outer_products(rows, as_const(left), as_const(right),
                                   f, output.transpose(0, 1), true);
    }
};

template <class Product, class Types>
struct problem {
    using L = typename Types::L;
    using R = typename Types::R;
    using O = typename Types::O;
    using A = accumulator_t<L, R, O>;
    using S = oracle_t<L, R, O>;

    explicit problem(const shape& sizes_of_problem, const layouts& orders = {})
        : s(sizes_of_problem), rows(some_rows(s.rows)), left(Product::left(s), orders.left),
          right(Product::right(s), orders.right), output(Product::output(s), orders.output) {
        random_source random(53);
        random.fill(left.view());
        random.fill(right.view());
        random.fill(output.view());
    }

    void run(double f = factor) {
        Product::run(set_of(rows), left.view(), right.view(), f, output.view());
    }

    // Compares the output with what the oracle makes of the output before.
    [[nodiscard]] comparison check(const tensor<O, 2>& before) {
        const auto other = [&](const tensor_view<R, 2>& view) {
            return Product::output_has_rows ? copy_as<S>(view) : gather<S>(view, rows);
        };
        const tensor<S, 2> gathered = gather<S>(left.view(), rows);
        const tensor<S, 2> l =
            Product::output_has_rows ? gathered : copy_as<S>(gathered.view().transpose(0, 1));
        tensor<S, 2> start = rows_of_output<S>(before.view());
        if (!Product::accumulates) std::fill(start.values().begin(), start.values().end(), S(0));
        const oracle<S> truth(l.view(), other(right.view()).const_view(), S(factor), start);
        const tensor<O, 2> got = rows_of_output<O>(output.view());
        return compare(got.view(), truth.want.view(), truth.magnitude.view(),
                       within<A>(static_cast<double>(Product::terms(s)) + 3));
    }

    template <class T, class V>
    tensor<T, 2> rows_of_output(const tensor_view<V, 2>& view) const {
        return Product::output_has_rows ? gather<T>(view, rows) : copy_as<T>(view);
    }

    shape s;
    std::vector<index_t> rows;
    guarded_buffer<L, 2> left;
    guarded_buffer<R, 2> right;
    guarded_buffer<O, 2> output;
};

// Runs one problem, with everything that must hold of every shape and layout.
template <class Product, class Types>
double check_problem(const shape& s, const layouts& orders) {
    CAPTURE(s.rows);
    CAPTURE(s.wide);
    CAPTURE(s.rank);
    CAPTURE(name_of(orders.left));
    CAPTURE(name_of(orders.right));
    CAPTURE(name_of(orders.output));
    problem<Product, Types> p(s, orders);
    using O = typename Types::O;
    const tensor<O, 2> before = copy_as<O>(p.output.view());
    p.run();
    const comparison result = p.check(before);
    CHECK(result);
    CHECK(p.output.intact());
    if (Product::output_has_rows) {
        std::vector<index_t> others;
        for (index_t row = 0; row < p.output.view().extent(0); ++row)
            if (std::find(p.rows.begin(), p.rows.end(), row) == p.rows.end()) others.push_back(row);
        const auto rows_before = gather<O>(before.view(), others);
        const auto rows_after = gather<O>(p.output.view(), others);
        CHECK(compare_bitwise(rows_after.view(), rows_before.view()));
    }
    return result.worst_ratio;
}

// Every size against every other, each in some layout; and one odd size in all layouts.
template <class Product, class Types>
void sweep() {
    random_source random(59);
    const auto any_layout = [&] {
        return all_layouts[static_cast<std::size_t>(
            random.integer(static_cast<index_t>(all_layouts.size())))];
    };
    double worst = 0;
    for (index_t wide : sizes)
        for (index_t rank : sizes)
            worst = std::max(worst, check_problem<Product, Types>(
                                        {row_counts[static_cast<std::size_t>(random.integer(
                                             static_cast<index_t>(row_counts.size())))],
                                         wide, rank},
                                        {any_layout(), any_layout(), any_layout()}));
    for (index_t rows : row_counts)
        check_problem<Product, Types>({rows, 65, 17}, {});
    for (layout left : all_layouts)
        for (layout right : all_layouts)
            for (layout output : all_layouts)
                for (const shape& s : {shape{3, 19, 17}, {17, 70, 5}})
                    check_problem<Product, Types>(s, {left, right, output});
    // A bound that is never come near would hide bugs.
    CHECK(worst > (MHR_TEST_FEW_COMBINATIONS ? 0.02 : 0.05));
}

using f32 = storage<float, float, float>;

} // namespace

TEST_CASE_TEMPLATE("project agrees with the oracle", Types, storage<double, double, double>, f32,
                   storage<Eigen::bfloat16, Eigen::half, float>,
                   storage<float, Eigen::bfloat16, float>, storage<float, float, double>,
                   storage<double, Eigen::half, double>,
                   storage<Eigen::half, Eigen::half, Eigen::half>) {
    sweep<projection, Types>();
}

TEST_CASE_TEMPLATE("expand agrees with the oracle", Types, storage<double, double, double>, f32,
                   storage<float, Eigen::bfloat16, Eigen::half>,
                   storage<float, Eigen::half, Eigen::bfloat16>, storage<float, float, double>,
                   storage<double, float, float>) {
    sweep<expansion, Types>();
}

TEST_CASE_TEMPLATE("add_outer_products agrees with the oracle", Types,
                   storage<double, double, double>, f32,
                   storage<Eigen::bfloat16, float, Eigen::half>,
                   storage<Eigen::half, float, Eigen::bfloat16>, storage<float, double, float>,
                   storage<float, float, double>) {
    sweep<outer_products, Types>();
}

TEST_CASE_TEMPLATE("the comparison reports planted bugs", Product, projection, expansion,
                   outer_products) {
    using bug_problem = problem<Product, f32>;
    const shape s{5, 9, 9};
    const auto check_after = [&](auto&& plant) {
        bug_problem p(s);
        const auto before = copy_as<float>(p.output.view());
        p.run();
        plant(p, before);
        return p.check(before);
    };
    const auto target = [](bug_problem& p) -> float& {
        return p.output(Product::output_has_rows ? p.rows[0] : 0, 3);
    };
    using start = tensor<float, 2>;

    CHECK(check_after([](bug_problem&, const start&) {}));
    CHECK_FALSE(check_after([&](bug_problem& p, const start&) { target(p) = -target(p); }));
    CHECK_FALSE(check_after([&](bug_problem& p, const start&) { target(p) += 0x1p-15F; }));
    CHECK_FALSE(check_after([&](bug_problem& p, const start&) {
        target(p) = std::numeric_limits<float>::quiet_NaN();
    }));
    const auto run_again = [](bug_problem& p, const start& before, double f) {
        transform(before.view(), p.output.view(), [](float value) { return value; });
        p.run(f);
    };
    CHECK(check_after([&](bug_problem& p, const start& b) { run_again(p, b, factor); }));
    // The factor dropped; its sign; one row left out; the matrix transposed.
    CHECK_FALSE(check_after([&](bug_problem& p, const start& b) { run_again(p, b, 1); }));
    CHECK_FALSE(check_after([&](bug_problem& p, const start& b) { run_again(p, b, -factor); }));
    CHECK_FALSE(check_after([&](bug_problem& p, const start& b) {
        const std::vector<index_t> all = p.rows;
        p.rows.pop_back();
        run_again(p, b, factor);
        p.rows = all;
    }));
    CHECK_FALSE(check_after([&](bug_problem& p, const start& b) {
        transform(b.view(), p.output.view(), [](float value) { return value; });
        const auto right = p.right.view().block(0, 0, 9);
        const auto output = p.output.view();
        if constexpr (Product::output_has_rows)
            Product::run(set_of(p.rows), p.left.view(), right.transpose(0, 1), factor, output);
        else
            Product::run(set_of(p.rows), p.left.view(), p.right.view(), factor,
                         output.transpose(0, 1));
    }));
}

TEST_CASE_TEMPLATE("the order of rows and the company of others do not change a row", Product,
                   projection, expansion) {
    problem<Product, f32> together({33, 70, 19});
    problem<Product, f32> alone({33, 70, 19});
    together.run();
    for (auto row = alone.rows.rbegin(); row != alone.rows.rend(); ++row)
        Product::run({&*row, 1}, alone.left.view(), alone.right.view(), factor,
                     alone.output.view());
    CHECK(compare_bitwise(alone.output.view(), together.output.view()));
}

TEST_CASE("outer products of more rows than are taken at a time") {
    // 48: more would be rounded to a narrow output more than once.
    for (index_t rows : {48, 49, 97})
        check_problem<outer_products, f32>({rows, 83, 19}, {});
}

TEST_CASE("outer products that do not accumulate are those added to 0") {
    for (index_t rows : {1, 48, 49, 97}) {
        CAPTURE(rows);
        const shape s{rows, 83, 19};
        problem<outer_products, f32> added(s);
        problem<outer_products, f32> written(s);
        added.output.fill(0);
        added.run();
        written.output.fill(std::numeric_limits<float>::quiet_NaN());
        detail::add_outer_products(set_of(written.rows), as_const(written.left.view()),
                                   as_const(written.right.view()), factor,
                                   written.output.view().transpose(0, 1), false);
        CHECK(compare_bitwise(written.output.view(), added.output.view()));
        CHECK(written.output.intact());
    }
}

TEST_CASE("outer products may be cut into blocks of features") {
    // What the threads of a backward do; the blocks are multiples of a tile.
    problem<outer_products, f32> whole({7, 83, 19});
    problem<outer_products, f32> cut({7, 83, 19});
    whole.run();
    for (index_t first = 0; first < 83; first += 32) {
        const index_t count = std::min<index_t>(32, 83 - first);
        outer_products::run(set_of(cut.rows), cut.left.view().block(1, first, count),
                            cut.right.view(), factor, cut.output.view().block(0, first, count));
    }
    CHECK(compare_bitwise(cut.output.view(), whole.output.view()));
}

TEST_CASE_TEMPLATE("a factor that is a power of two is exact", Product, projection, expansion,
                   outer_products) {
    problem<Product, f32> once({5, 23, 17});
    problem<Product, f32> scaled({5, 23, 17});
    once.output.fill(0);
    scaled.output.fill(0);
    once.run(1);
    scaled.run(-0.25);
    const auto want = copy_as<float>(once.output.view());
    transform(want.view(), once.output.view(), [](float value) { return -0.25F * value; });
    CHECK(compare_bitwise(scaled.template rows_of_output<float>(scaled.output.view()).view(),
                          scaled.template rows_of_output<float>(once.output.view()).view()));
}

TEST_CASE_TEMPLATE("inputs may repeat elements by strides of 0", Product, projection, expansion,
                   outer_products) {
    const float left = 0.5F;
    const float right = 3;
    const shape s{3, 20, 5};
    const std::vector<index_t> rows = some_rows(3);
    guarded_buffer<float, 2> output(Product::output(s));
    output.fill(1);
    Product::run(set_of(rows), tensor_view<const float, 2>(&left, Product::left(s), {0, 0}),
                 tensor_view<const float, 2>(&right, Product::right(s), {0, 0}), 2, output.view());
    const float want = static_cast<float>(Product::terms(s)) * 3 + (Product::accumulates ? 1 : 0);
    const std::vector<index_t> written = Product::output_has_rows ? rows : std::vector<index_t>{0};
    for (index_t row : written)
        for (index_t i = 0; i < output.view().extent(1); ++i)
            CHECK(output(row, i) == want);
    CHECK(output.intact());
}

TEST_CASE_TEMPLATE("nothing happens where there is nothing", Product, projection, expansion,
                   outer_products) {
    problem<Product, f32> p({3, 9, 4});
    const snapshot before = p.output.take_snapshot();
    Product::run({nullptr, 0}, p.left.view(), p.right.view(), factor, p.output.view());
    CHECK(p.output.unchanged_since(before));

    // Sums of no terms are 0, and outputs of no elements are left alone.
    for (const shape& s : {shape{3, 0, 4}, {3, 9, 0}, {3, 0, 0}}) {
        problem<Product, f32> empty(s);
        const snapshot untouched = empty.output.take_snapshot();
        empty.run();
        CHECK(empty.output.intact());
        if (Product::accumulates) {
            CHECK(empty.output.unchanged_since(untouched));
        } else {
            for (index_t row : empty.rows)
                for (index_t k = 0; k < s.rank; ++k)
                    CHECK(empty.output(row, k) == 0);
        }
    }
}

TEST_CASE("rows without features may have no memory") {
    const std::array<index_t, 2> rows{1, 0};
    guarded_buffer<float, 2> narrow({2, 3});
    using nothing = tensor_view<const float, 2>;
    detail::project(detail::row_set{rows.data(), 2}, nothing(nullptr, {2, 0}),
                    nothing(nullptr, {0, 3}), 1, narrow.view());
    for_each_position(std::array<index_t, 2>{2, 3},
                      [&](const position<2>& at) { CHECK(element(narrow.view(), at) == 0); });
    const snapshot before = narrow.take_snapshot();
    detail::expand(detail::row_set{rows.data(), 2}, nothing(nullptr, {2, 0}),
                   nothing(nullptr, {0, 3}), 1, narrow.view());
    CHECK(narrow.unchanged_since(before));
}
