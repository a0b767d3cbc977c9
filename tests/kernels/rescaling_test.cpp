#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/rescaling.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/guarded_tensor.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// Round the lanes, and the chunks that are copied (128 of f64, 256 of f32).
const std::vector<index_t> widths{1, 3, 4, 7, 8, 16, 17, 127, 128, 129, 255, 256, 257, 530};
const std::vector<index_t> some_rows{4, 0, 2};
const row_set rows{some_rows.data(), 3};
constexpr index_t all_rows = 6;

bool is_of_set(index_t row) {
    return std::find(some_rows.begin(), some_rows.end(), row) != some_rows.end();
}

// This says how the two inputs and the output are stored.
struct storage {
    element_type first, second, output;
};
struct layouts {
    layout first, second, output;
};

template <class F>
void for_each_storage(element_type sums, F&& f) {
    for (element_type a : types_beside(sums))
        for (element_type b : types_beside(sums))
            for (element_type c : types_beside(sums)) {
                CAPTURE(std::string(name_of(a)));
                CAPTURE(std::string(name_of(b)));
                CAPTURE(std::string(name_of(c)));
                f(storage{a, b, c});
            }
}

/// from [rows, n], scales [n], to [rows, n].
template <class A>
struct rescaling {
    guarded_tensor<2> from;
    guarded_tensor<1> scales;
    guarded_tensor<2> to;

    rescaling(index_t n, const storage& t, const layouts& o = {})
        : from(t.first, {all_rows, n}, o.first), scales(t.second, {n}, o.second),
          to(t.output, {all_rows, n}, o.output) {
        random_source random(73);
        fill_exactly(from.ref(), random);
        fill_exactly(scales.ref(), random);
        fill_exactly(to.ref(), random);
    }
    void run(bool with_scales, bool accumulate) {
        kernels::rescale_rows<default_arch, A>(
            rows, from, with_scales ? scales.const_ref() : const_tensor_ref<1>{}, to, accumulate);
    }
};

// One product, one sum at most, one rounding to the output: the error is that of the sum (which a
// fused multiply-add does not round before).
template <class A>
void check_rescaling(index_t n, const storage& types, const layouts& o, bool with_scales,
                     bool accumulate) {
    CAPTURE(n);
    CAPTURE(with_scales);
    CAPTURE(accumulate);
    using S = oracle_t<A>;
    rescaling<A> r(n, types, o);
    if (!accumulate)
        for (index_t row : some_rows) // what is overwritten is not read
            for (index_t i = 0; i < n; ++i)
                set_element(r.to.ref(), {row, i}, std::nan(""));
    const auto before = values_as<S>(r.to.ref());
    r.run(with_scales, accumulate);
    CHECK(r.to.intact());
    tensor<S, 2> want(r.to.extents()), size(r.to.extents());
    for (index_t row = 0; row < all_rows; ++row)
        for (index_t i = 0; i < n; ++i) {
            if (!is_of_set(row)) {
                want(row, i) = before(row, i);
                continue;
            }
            const S scale = with_scales ? static_cast<S>(element(r.scales.ref(), {i})) : S(1);
            const S product = static_cast<S>(element(r.from.ref(), {row, i})) * scale;
            const S start = accumulate ? before(row, i) : S(0);
            want(row, i) = start + product;
            size(row, i) = std::abs(start) + std::abs(product);
        }
    CHECK(compare(r.to.ref(), want.const_view(), size.const_view(), within<A>(1)));

    // The same bits as of dense rows of the type of sums, rounded.
    rescaling<A> plain(n, {element_type_of_v<A>, element_type_of_v<A>, element_type_of_v<A>});
    plain.run(with_scales, accumulate);
    for (index_t row : some_rows) {
        guarded_tensor<1> rounded(types.output, {n});
        round_to(rounded.ref(), plain.to.ref().slice(0, row));
        CHECK(compare_bitwise(r.to.ref().slice(0, row), rounded.ref()));
    }
}

template <class A>
void check_rescaling() {
    for_each_storage(element_type_of_v<A>, [](const storage& types) {
        int number = 0;
        for (index_t n : widths) {
            // Several layouts for each width.
            const auto layout_of = [&](int i) {
                return all_layouts[static_cast<std::size_t>(number / i) % all_layouts.size()];
            };
            for (bool with_scales : {true, false})
                for (bool accumulate : {true, false}) {
                    ++number;
                    check_rescaling<A>(n, types, {layout_of(1), layout_of(2), layout_of(3)},
                                       with_scales, accumulate);
                }
        }
    });
    constexpr element_type sums = element_type_of_v<A>;
    for (element_type type : {sums, element_type::f16})
        for (layout a : all_layouts)
            for (layout b : all_layouts)
                for (layout c : all_layouts)
                    check_rescaling<A>(37, {type, type, type}, {a, b, c}, true, true);
}

} // namespace

TEST_CASE("rows are rescaled, of every type and layout") {
    check_rescaling<float>();
    check_rescaling<double>();
}

TEST_CASE("rows may be rescaled where they are") {
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16})
        for (layout order : all_layouts) {
            rescaling<float> apart(300, {type, element_type::f32, type}, {order, {}, {}});
            rescaling<float> in_place(300, {type, element_type::f32, type}, {order, {}, {}});
            apart.run(true, false);
            kernels::rescale_rows<default_arch, float>(rows, in_place.from, in_place.scales,
                                                       in_place.from, false);
            for (index_t row : some_rows)
                CHECK(compare_bitwise(in_place.from.ref().slice(0, row),
                                      apart.to.ref().slice(0, row)));
            CHECK(in_place.from.intact());
        }
}

namespace {

/// x, d_y [rows, n] and totals [n].
template <class A>
struct products {
    guarded_tensor<2> x, d_y;
    guarded_tensor<1> totals;

    products(index_t n, const storage& t, const layouts& o = {})
        : x(t.first, {all_rows, n}, o.first), d_y(t.second, {all_rows, n}, o.second),
          totals(t.output, {n}, o.output) {
        random_source random(79);
        fill_exactly(x.ref(), random);
        fill_exactly(d_y.ref(), random);
        fill_exactly(totals.ref(), random);
    }
    void run(row_set set = rows) {
        kernels::add_products_of_rows<default_arch, A>(set, x, d_y, totals);
    }
};

template <class A>
void check_products(index_t n, const storage& types, const layouts& o) {
    CAPTURE(n);
    using S = oracle_t<A>;
    products<A> p(n, types, o);
    tensor<S, 1> want = values_as<S>(p.totals.ref());
    tensor<S, 1> size = magnitudes_as<S>(p.totals.ref());
    for (index_t row : some_rows)
        for (index_t i = 0; i < n; ++i) {
            const S term = static_cast<S>(element(p.x.ref(), {row, i})) *
                           static_cast<S>(element(p.d_y.ref(), {row, i}));
            want(i) += term;
            size(i) += std::abs(term);
        }
    p.run();
    CHECK(p.totals.intact());
    CHECK(compare(p.totals.ref(), want.const_view(), size.const_view(), within<A>(4)));

    products<A> plain(n, {element_type_of_v<A>, element_type_of_v<A>, element_type_of_v<A>});
    plain.run();
    guarded_tensor<1> rounded(types.output, {n});
    round_to(rounded.ref(), plain.totals.ref());
    CHECK(compare_bitwise(p.totals.ref(), rounded.ref()));
}

template <class A>
void check_products() {
    for_each_storage(element_type_of_v<A>, [](const storage& types) {
        int number = 0;
        for (index_t n : widths)
            for (int i = 0; i < 3; ++i) {
                ++number;
                const auto layout_of = [&](int divisor) {
                    return all_layouts[static_cast<std::size_t>(number / divisor) %
                                       all_layouts.size()];
                };
                check_products<A>(n, types, {layout_of(1), layout_of(2), layout_of(5)});
            }
    });
}

} // namespace

TEST_CASE("products of rows are summed, of every type and layout") {
    check_products<float>();
    check_products<double>();
}

TEST_CASE("products of rows are summed in the order of the set, to be rounded once") {
    // A sum in bf16 would lose each of these.
    products<float> p(5, {element_type::f32, element_type::f32, element_type::bf16});
    p.x.fill(0x1p-10);
    p.d_y.fill(1);
    p.totals.fill(1);
    const std::vector<index_t> often(16, 3);
    p.run({often.data(), 16});
    for (index_t i = 0; i < 5; ++i)
        CHECK(element(p.totals.ref(), {i}) == 1 + 0x1p-6);

    const std::vector<index_t> order{5, 1, 0, 3}, reverse{3, 0, 1, 5};
    products<float> ordered(257, {}), split(257, {}), reversed(257, {});
    for (products<float>* each : {&ordered, &split, &reversed})
        each->totals.fill(0);
    ordered.run({order.data(), 4});
    reversed.run({reverse.data(), 4});
    CHECK_FALSE(compare_bitwise(reversed.totals.ref(), ordered.totals.ref()));
    // No rows at all add nothing.
    const snapshot before = ordered.totals.take_snapshot();
    ordered.run({nullptr, 0});
    CHECK(ordered.totals.unchanged_since(before));
}

namespace {

template <class A>
void check_run(element_type type, layout order, index_t n, bool divide) {
    CAPTURE(std::string(name_of(type)));
    CAPTURE(name_of(order));
    CAPTURE(n);
    CAPTURE(divide);
    guarded_tensor<2> memory(type, {n, 1}, order);
    memory.fill(random_source(83));
    guarded_tensor<1> want(type, {n});
    const tensor_ref<1> elements = memory.ref().slice(1, 0);
    const A factor = A(1.1);
    for (index_t i = 0; i < n; ++i) {
        const A value = static_cast<A>(element(elements, {i}));
        const A result = divide ? value / factor : value * factor;
        set_element(want.ref(), {i}, static_cast<double>(result));
    }
    kernels::rescale_run<default_arch, A>(elements, 1.1, divide);
    CHECK(memory.intact());
    if (n != 0) CHECK(compare_bitwise(elements, want.ref()));
}

} // namespace

TEST_CASE("a run is multiplied or divided, and rounded once") {
    for (layout order : all_layouts)
        for (index_t n : {0, 1, 7, 128, 255, 256, 257, 700})
            for (bool divide : {true, false})
                for (element_type type : all_element_types) {
                    if (type != element_type::f64) check_run<float>(type, order, n, divide);
                    check_run<double>(type, order, n, divide);
                }
}
