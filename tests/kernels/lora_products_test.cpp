#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/kernels/lora_products.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/guarded_tensor.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

// All three products are out += factor left right for the rows of a set, so that one problem, one
// oracle and one sweep of shapes serve them all. They differ in what is tall, wide and narrow.

using namespace mhr;
using namespace mhr::test;

namespace {

struct shape {
    index_t rows, wide, rank;
};
struct layouts {
    layout left, right, output;
};
// This says what is stored how; one of the tensors, or two, are of the type of sums.
struct storage {
    element_type left, right, output;
};

// Small tiles are 8 and 16, large ones 64: sizes below, equal, above and multiples.
const std::vector<index_t> few_sizes{1, 17, 65};
const std::vector<index_t> sizes{1, 17, 65 MHR_TEST_ALSO(2, 7, 8, 9, 15, 16, 31, 33, 63, 64, 130)};
const std::vector<index_t> row_counts{1, 2, 15, 16, 17, 33};

// Numbers of `count` rows of twice as many, in no order.
std::vector<index_t> some_rows(index_t count) {
    auto rows = random_source(static_cast<std::uint64_t>(count)).permutation(2 * count);
    rows.resize(static_cast<std::size_t>(count));
    return rows;
}

row_set set_of(const std::vector<index_t>& rows) {
    return {rows.data(), static_cast<index_t>(rows.size())};
}

// The rows of a set, one below the other.
template <class T>
tensor<T, 2> gather(const tensor_view<T, 2>& matrix, const std::vector<index_t>& rows) {
    tensor<T, 2> result({static_cast<index_t>(rows.size()), matrix.extent(1)});
    for (index_t r = 0; r < result.extents()[0]; ++r)
        for (index_t i = 0; i < result.extents()[1]; ++i)
            result(r, i) = matrix(rows[static_cast<std::size_t>(r)], i);
    return result;
}

constexpr double factor = 0.375; // a number that every type can hold

// Each product knows the extents of its arguments, what may be of any type, and how to see itself
// as left times right.
struct shrinking {
    static constexpr bool accumulates = false;
    static constexpr bool output_has_rows = true;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.wide}; }
    static std::array<index_t, 2> right(const shape& s) { return {s.wide, s.rank}; }
    static std::array<index_t, 2> output(const shape& s) { return {2 * s.rows, s.rank}; }
    static index_t terms(const shape& s) { return s.wide; }
    static storage types(element_type a, element_type b, element_type sums) { return {a, b, sums}; }
    template <class A>
    static void run(row_set rows, const const_tensor_ref<2>& left, const const_tensor_ref<2>& right,
                    double f, const tensor_ref<2>& output) {
        kernels::shrink<default_arch, A>(rows, left, right, f, output.as<A>());
    }
};
struct expansion {
    static constexpr bool accumulates = true;
    static constexpr bool output_has_rows = true;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.rank}; }
    static std::array<index_t, 2> right(const shape& s) { return {s.rank, s.wide}; }
    static std::array<index_t, 2> output(const shape& s) { return {2 * s.rows, s.wide}; }
    static index_t terms(const shape& s) { return s.rank; }
    static storage types(element_type a, element_type b, element_type sums) { return {sums, a, b}; }
    template <class A>
    static void run(row_set rows, const const_tensor_ref<2>& left, const const_tensor_ref<2>& right,
                    double f, const tensor_ref<2>& output) {
        kernels::expand<default_arch, A>(rows, left.as<A>(), right, f, output);
    }
};
struct outer_products {
    static constexpr bool accumulates = true;
    static constexpr bool output_has_rows = false;
    static std::array<index_t, 2> left(const shape& s) { return {2 * s.rows, s.wide}; }
    static std::array<index_t, 2> right(const shape& s) { return {2 * s.rows, s.rank}; }
    static std::array<index_t, 2> output(const shape& s) { return {s.wide, s.rank}; }
    static index_t terms(const shape& s) { return s.rows; }
    // `b` is of what is needed next, which is fetched alone.
    static storage types(element_type a, element_type, element_type sums) {
        return {a, sums, sums};
    }
    template <class A>
    static void run(row_set rows, const const_tensor_ref<2>& left, const const_tensor_ref<2>& right,
                    double f, const tensor_ref<2>& output) {
        kernels::add_outer_products<default_arch, A>(rows, left, right.as<A>(), f,
                                                     output.transpose(0, 1).as<A>(), true, {});
    }
};

constexpr storage same(element_type type) {
    return {type, type, type};
}

template <class Product, class A>
struct problem {
    using S = oracle_t<A>;

    explicit problem(const shape& sizes_of_problem, const layouts& orders = {},
                     const storage& types = same(element_type_of_v<A>))
        : s(sizes_of_problem), rows(some_rows(s.rows)),
          left(types.left, Product::left(s), orders.left),
          right(types.right, Product::right(s), orders.right),
          output(types.output, Product::output(s), orders.output) {
        random_source random(53);
        left.fill(random);
        right.fill(random);
        output.fill(random);
    }

    void fill_exactly() {
        random_source random(57);
        for (const tensor_ref<2>& tensor : {left.ref(), right.ref(), output.ref()})
            test::fill_exactly(tensor, random);
    }

    void run(double f = factor) { Product::template run<A>(set_of(rows), left, right, f, output); }

    // Compares the output with what the oracle makes of the output before.
    [[nodiscard]] comparison check(const tensor<S, 2>& before) const {
        tensor<S, 2> l = gather(values_as<S>(left.const_ref()).view(), rows);
        tensor<S, 2> r = values_as<S>(right.const_ref());
        if (!Product::output_has_rows) {
            l = copy_as<S>(l.view().transpose(0, 1));
            r = gather(r.view(), rows);
        }
        tensor<S, 2> want = rows_of_output(before);
        if (!Product::accumulates) std::fill(want.values().begin(), want.values().end(), S(0));
        tensor<S, 2> magnitude = magnitudes_as<S>(want.view());
        for_each_position(want.extents(), [&](const position<2>& at) {
            for (index_t k = 0; k < r.extents()[0]; ++k) {
                const S term = S(factor) * l(at[0], k) * r(k, at[1]);
                element(want.view(), at) += term;
                element(magnitude.view(), at) += std::abs(term);
            }
        });
        // The rows of the output one below the other, in its own type.
        const tensor<S, 2> got = rows_of_output(values_as<S>(output.const_ref()));
        guarded_tensor<2> stored(output.type(), got.extents());
        for_each_position(got.extents(), [&](const position<2>& at) {
            set_element(stored.ref(), at, static_cast<double>(element(got.view(), at)));
        });
        return compare(stored.ref(), want.const_view(), magnitude.const_view(),
                       within<A>(static_cast<double>(Product::terms(s)) + 3));
    }

    [[nodiscard]] tensor<S, 2> rows_of_output(const tensor<S, 2>& all) const {
        tensor<S, 2> copy = all;
        return Product::output_has_rows ? gather(copy.view(), rows) : copy;
    }

    shape s;
    std::vector<index_t> rows;
    guarded_tensor<2> left, right, output;
};

// Runs one problem, with everything that must hold of every shape, layout and type.
template <class Product, class A>
double check_problem(const shape& s, const layouts& orders = {},
                     const storage& types = same(element_type_of_v<A>)) {
    CAPTURE(s.rows);
    CAPTURE(s.wide);
    CAPTURE(s.rank);
    CAPTURE(name_of(orders.left));
    CAPTURE(name_of(orders.right));
    CAPTURE(name_of(orders.output));
    CAPTURE(std::string(name_of(types.left)));
    CAPTURE(std::string(name_of(types.right)));
    CAPTURE(std::string(name_of(types.output)));
    problem<Product, A> p(s, orders, types), untouched(s, orders, types);
    const auto before = values_as<oracle_t<A>>(p.output.ref());
    p.run();
    const comparison result = p.check(before);
    CHECK(result);
    CHECK(p.output.intact());
    if (Product::output_has_rows)
        for (index_t row = 0; row < p.output.extents()[0]; ++row)
            if (std::find(p.rows.begin(), p.rows.end(), row) == p.rows.end())
                CHECK(compare_bitwise(p.output.ref().slice(0, row),
                                      untouched.output.ref().slice(0, row)));
    return result.worst_ratio;
}

// Calls `f(types)` for all combinations of types beside sums of A.
template <class Product, class A, class F>
void for_each_storage(F&& f) {
    constexpr element_type sums = element_type_of_v<A>;
    for (element_type a : types_beside(sums))
        for (element_type b : types_beside(sums))
            if (Product::output_has_rows || b == sums) f(Product::types(a, b, sums));
}

// Sizes against each other, each in some layout; and one odd size in all layouts.
template <class Product, class A>
double sweep(const std::vector<index_t>& of_sizes, const storage& types) {
    random_source random(59);
    const auto any_layout = [&] {
        return all_layouts[static_cast<std::size_t>(
            random.integer(static_cast<index_t>(all_layouts.size())))];
    };
    double worst = 0;
    for (index_t wide : of_sizes)
        for (index_t rank : of_sizes)
            worst = std::max(worst, check_problem<Product, A>(
                                        {row_counts[static_cast<std::size_t>(random.integer(
                                             static_cast<index_t>(row_counts.size())))],
                                         wide, rank},
                                        {any_layout(), any_layout(), any_layout()}, types));
    for (index_t rows : row_counts)
        check_problem<Product, A>({rows, 65, 17}, {}, types);
    for (layout left : all_layouts)
        for (layout right : all_layouts)
            for (layout output : all_layouts)
                check_problem<Product, A>({3, 19, 17}, {left, right, output}, types);
    return worst;
}

#define PRODUCTS shrinking, expansion, outer_products

} // namespace

TEST_CASE_TEMPLATE("products agree with the oracle at every size", Product, PRODUCTS) {
    // A bound that is never come near would hide bugs.
    CHECK(sweep<Product, float>(sizes, same(element_type::f32)) > 0.02);
    CHECK(sweep<Product, double>(sizes, same(element_type::f64)) > 0.02);
    for (layout left : all_layouts)
        for (layout right : all_layouts)
            for (layout output : all_layouts)
                check_problem<Product, float>({17, 70, 5}, {left, right, output});
}

TEST_CASE_TEMPLATE("products agree with the oracle for every combination of types", Product,
                   PRODUCTS) {
    for_each_storage<Product, float>(
        [](const storage& types) { sweep<Product, float>(few_sizes, types); });
    for_each_storage<Product, double>(
        [](const storage& types) { sweep<Product, double>(few_sizes, types); });
}

namespace {

// The same numbers, stored as `types` and in these layouts or densely in the type of sums.
template <class Product, class A>
void check_same_bits(const shape& s, const layouts& orders, const storage& types) {
    CAPTURE(s.rows);
    CAPTURE(s.wide);
    CAPTURE(s.rank);
    CAPTURE(name_of(orders.left));
    CAPTURE(name_of(orders.right));
    CAPTURE(name_of(orders.output));
    CAPTURE(std::string(name_of(types.left)));
    CAPTURE(std::string(name_of(types.right)));
    CAPTURE(std::string(name_of(types.output)));
    problem<Product, A> plain(s), other(s, orders, types);
    plain.fill_exactly();
    other.fill_exactly();
    plain.run();
    other.run();
    guarded_tensor<2> want(types.output, plain.output.extents());
    round_to(want.ref(), plain.output.ref());
    CHECK(compare_bitwise(other.output.ref(), want.ref()));
}

template <class Product, class A>
void check_same_bits() {
    // Chunks of columns are 256 (128) where they are copied; up to 2048 where they are not.
    for (const shape& s : {shape{13, 70, 19}, {3, 2100, 3}, {50, 33, 4}})
        for_each_storage<Product, A>([&](const storage& types) {
            for (layout order : all_layouts) {
                check_same_bits<Product, A>(s, {order, order, order}, types);
                check_same_bits<Product, A>(s, {order, {}, {}}, types);
                check_same_bits<Product, A>(s, {{}, order, {}}, types);
                check_same_bits<Product, A>(s, {{}, {}, order}, types);
            }
        });
}

} // namespace

TEST_CASE_TEMPLATE("the same numbers give the same bits in every type and layout", Product,
                   PRODUCTS) {
    check_same_bits<Product, float>();
    check_same_bits<Product, double>();
}

TEST_CASE("the order of sums is seen in the bits of those numbers") {
    // Or else the test above could not fail.
    problem<shrinking, float> p({1, 70, 19});
    p.fill_exactly();
    p.run(1);
    const auto x = p.left.ref().as<float>();
    const auto a = p.right.ref().as<float>();
    int other = 0;
    for (index_t k = 0; k < 19; ++k) {
        float backwards = 0;
        for (index_t i = 70; i-- > 0;)
            backwards += x(p.rows[0], i) * a(i, k);
        if (!is_exactly(element(p.output.ref(), {p.rows[0], k}), double(backwards))) ++other;
    }
    CHECK(other > 5);
}

TEST_CASE_TEMPLATE("the comparison reports planted bugs", Product, PRODUCTS) {
    using bug_problem = problem<Product, float>;
    const shape s{5, 9, 9};
    const auto check_after = [&](auto&& plant) {
        bug_problem p(s);
        const auto before = values_as<double>(p.output.ref());
        p.run();
        plant(p);
        return p.check(before);
    };
    const auto target = [](bug_problem& p) -> float& {
        return p.output.ref().template as<float>()(Product::output_has_rows ? p.rows[0] : 0, 3);
    };
    const auto run_again = [&](bug_problem& p, double f) {
        round_to(p.output.ref(), bug_problem(s).output.ref());
        p.run(f);
    };
    CHECK(check_after([](bug_problem&) {}));
    CHECK_FALSE(check_after([&](bug_problem& p) { target(p) = -target(p); }));
    CHECK_FALSE(check_after([&](bug_problem& p) { target(p) += 0x1p-15F; }));
    CHECK_FALSE(
        check_after([&](bug_problem& p) { target(p) = std::numeric_limits<float>::quiet_NaN(); }));
    CHECK(check_after([&](bug_problem& p) { run_again(p, factor); }));
    // The factor dropped; its sign; one row left out; the matrix transposed.
    CHECK_FALSE(check_after([&](bug_problem& p) { run_again(p, 1); }));
    CHECK_FALSE(check_after([&](bug_problem& p) { run_again(p, -factor); }));
    CHECK_FALSE(check_after([&](bug_problem& p) {
        const std::vector<index_t> all = p.rows;
        p.rows.pop_back();
        run_again(p, factor);
        p.rows = all;
    }));
    CHECK_FALSE(check_after([&](bug_problem& p) {
        round_to(p.output.ref(), bug_problem(s).output.ref());
        const auto right = p.right.ref().block(0, 0, 9);
        if constexpr (Product::output_has_rows)
            Product::template run<float>(set_of(p.rows), p.left.ref(), right.transpose(0, 1),
                                         factor, p.output.ref());
        else
            Product::template run<float>(set_of(p.rows), p.left.ref(), p.right.ref(), factor,
                                         p.output.ref().transpose(0, 1));
    }));
}

TEST_CASE_TEMPLATE("the order of rows and the company of others do not change a row", Product,
                   shrinking, expansion) {
    problem<Product, float> together({33, 70, 19});
    problem<Product, float> alone({33, 70, 19});
    together.run();
    for (auto row = alone.rows.rbegin(); row != alone.rows.rend(); ++row)
        Product::template run<float>({&*row, 1}, alone.left.ref(), alone.right.ref(), factor,
                                     alone.output.ref());
    CHECK(compare_bitwise(alone.output.ref(), together.output.ref()));
}

TEST_CASE("outer products of more rows than are taken at a time") {
    for (index_t rows : {48, 49, 97})
        check_problem<outer_products, float>({rows, 83, 19});
}

TEST_CASE("outer products that do not accumulate are those added to 0") {
    for (index_t rows : {1, 48, 49, 97}) {
        CAPTURE(rows);
        const shape s{rows, 83, 19};
        problem<outer_products, float> added(s);
        problem<outer_products, float> written(s);
        added.output.fill(0);
        added.run();
        written.output.fill(std::numeric_limits<double>::quiet_NaN());
        kernels::add_outer_products<default_arch, float>(
            set_of(written.rows), written.left.const_ref(), written.right.const_ref().as<float>(),
            factor, written.output.ref().transpose(0, 1).as<float>(), false, {});
        CHECK(compare_bitwise(written.output.ref(), added.output.ref()));
        CHECK(written.output.intact());
    }
}

TEST_CASE("what is fetched ahead changes nothing, of whatever type and width it is") {
    const shape s{50, 83, 19};
    problem<outer_products, float> alone(s);
    alone.run();
    for (element_type type : all_element_types)
        for (index_t columns : {1, 83, 300}) {
            problem<outer_products, float> p(s);
            guarded_tensor<2> ahead(type, {100, columns}, layout::padded);
            kernels::add_outer_products<default_arch, float>(
                set_of(p.rows), p.left.const_ref(), p.right.const_ref().as<float>(), factor,
                p.output.ref().transpose(0, 1).as<float>(), true, ahead.const_ref());
            CHECK(compare_bitwise(p.output.ref(), alone.output.ref()));
        }
}

TEST_CASE("outer products may be cut into blocks of features") {
    // What the threads of a backward do; the blocks are multiples of a tile.
    problem<outer_products, float> whole({7, 83, 19});
    problem<outer_products, float> cut({7, 83, 19});
    whole.run();
    for (index_t first = 0; first < 83; first += 32) {
        const index_t count = std::min<index_t>(32, 83 - first);
        outer_products::run<float>(set_of(cut.rows), cut.left.ref().block(1, first, count),
                                   cut.right.ref(), factor,
                                   cut.output.ref().block(0, first, count));
    }
    CHECK(compare_bitwise(cut.output.ref(), whole.output.ref()));
}

TEST_CASE_TEMPLATE("a factor that is a power of two is exact", Product, PRODUCTS) {
    problem<Product, float> once({5, 23, 17});
    problem<Product, float> scaled({5, 23, 17});
    once.output.fill(0);
    scaled.output.fill(0);
    once.run(1);
    scaled.run(-0.25);
    // Rows that are not of the set keep their 0, whose sign differs.
    transform_elements(once.output.ref(), [](double value) { return 0 - 0.25 * value; });
    transform_elements(scaled.output.ref(), [](double value) { return 0 + value; });
    CHECK(compare_bitwise(scaled.output.ref(), once.output.ref()));
}

TEST_CASE_TEMPLATE("inputs may repeat elements by strides of 0", Product, PRODUCTS) {
    const float left = 0.5F;
    const float right = 3;
    const shape s{3, 20, 5};
    const std::vector<index_t> rows = some_rows(3);
    guarded_tensor<2> output(element_type::f32, Product::output(s));
    output.fill(1);
    Product::template run<float>(set_of(rows), {&left, Product::left(s), {0, 0}},
                                 {&right, Product::right(s), {0, 0}}, 2, output.ref());
    const double want = static_cast<double>(Product::terms(s)) * 3 + (Product::accumulates ? 1 : 0);
    const std::vector<index_t> written = Product::output_has_rows ? rows : std::vector<index_t>{0};
    for (index_t row : written)
        for (index_t i = 0; i < output.extents()[1]; ++i)
            CHECK(element(output.ref(), {row, i}) == want);
    CHECK(output.intact());
}

TEST_CASE_TEMPLATE("nothing happens where there is nothing", Product, PRODUCTS) {
    problem<Product, float> p({3, 9, 4});
    const snapshot before = p.output.take_snapshot();
    Product::template run<float>({nullptr, 0}, p.left.ref(), p.right.ref(), factor, p.output.ref());
    CHECK(p.output.unchanged_since(before));

    // Sums of no terms are 0, and outputs of no elements are left alone.
    for (const shape& s : {shape{3, 0, 4}, {3, 9, 0}, {3, 0, 0}}) {
        problem<Product, float> empty(s);
        const snapshot untouched = empty.output.take_snapshot();
        empty.run();
        CHECK(empty.output.intact());
        if (Product::accumulates) {
            CHECK(empty.output.unchanged_since(untouched));
        } else {
            for (index_t row : empty.rows)
                for (index_t k = 0; k < s.rank; ++k)
                    CHECK(element(empty.output.ref(), {row, k}) == 0);
        }
    }
}

TEST_CASE("rows without features may have no memory") {
    const std::array<index_t, 2> rows{1, 0};
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16}) {
        guarded_tensor<2> narrow(element_type::f32, {2, 3});
        kernels::shrink<default_arch, float>(row_set{rows.data(), 2}, {nullptr, type, {2, 0}},
                                             {nullptr, type, {0, 3}}, 1, narrow.ref().as<float>());
        for_each_position(std::array<index_t, 2>{2, 3},
                          [&](const position<2>& at) { CHECK(element(narrow.ref(), at) == 0); });
        guarded_tensor<2> y(type, {2, 3});
        y.fill(1);
        const snapshot before = y.take_snapshot();
        kernels::expand<default_arch, float>(row_set{rows.data(), 2},
                                             tensor_view<const float, 2>(nullptr, {2, 0}),
                                             {nullptr, type, {0, 3}}, 1, y.ref());
        CHECK(y.unchanged_since(before));
    }
}
