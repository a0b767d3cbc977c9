#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/merging.hpp>

#include "support/combinations.hpp"
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
    index_t out, rank, in;
};
struct storage {
    element_type left, right, weight;
};
struct layouts {
    layout left, right, weight;
};

constexpr double factor = 0.375;

/// left [out, rank], right [rank, in] and weight [out, in].
template <class A>
struct problem {
    guarded_tensor<2> left, right, weight;

    explicit problem(const shape& s,
                     const storage& t = {element_type_of_v<A>, element_type_of_v<A>,
                                         element_type_of_v<A>},
                     const layouts& o = {})
        : left(t.left, {s.out, s.rank}, o.left), right(t.right, {s.rank, s.in}, o.right),
          weight(t.weight, {s.out, s.in}, o.weight) {
        random_source random(89);
        fill_exactly(left.ref(), random);
        fill_exactly(right.ref(), random);
        fill_exactly(weight.ref(), random);
    }
    void run(double f = factor) { kernels::add_product<default_arch, A>(left, right, f, weight); }
};

template <class A>
double check(const shape& s, const storage& types, const layouts& o) {
    CAPTURE(s.out);
    CAPTURE(s.rank);
    CAPTURE(s.in);
    CAPTURE(std::string(name_of(types.left)));
    CAPTURE(std::string(name_of(types.right)));
    CAPTURE(std::string(name_of(types.weight)));
    CAPTURE(name_of(o.left));
    CAPTURE(name_of(o.right));
    CAPTURE(name_of(o.weight));
    using S = oracle_t<A>;
    problem<A> p(s, types, o);
    auto want = values_as<S>(p.weight.ref());
    auto size = magnitudes_as<S>(p.weight.ref());
    for_each_position(want.extents(), [&](const position<2>& at) {
        for (index_t k = 0; k < s.rank; ++k) {
            const S term = S(factor) * static_cast<S>(element(p.left.ref(), {at[0], k})) *
                           static_cast<S>(element(p.right.ref(), {k, at[1]}));
            element(want.view(), at) += term;
            element(size.view(), at) += std::abs(term);
        }
    });
    p.run();
    CHECK(p.weight.intact());
    const comparison result = compare(p.weight.ref(), want.const_view(), size.const_view(),
                                      within<A>(static_cast<double>(s.rank) / 2 + 3));
    CHECK(result);

    // The same bits as of dense matrices of the type of sums, rounded.
    problem<A> plain(s);
    plain.run();
    guarded_tensor<2> rounded(types.weight, p.weight.extents());
    round_to(rounded.ref(), plain.weight.ref());
    CHECK(compare_bitwise(p.weight.ref(), rounded.ref()));
    return result.worst_ratio;
}

template <class A>
void check_all() {
    constexpr element_type sums = element_type_of_v<A>;
    // Round the 24 rows, 128 columns and 16 terms that are computed together.
    const shape shapes[] = {{1, 1, 1},    {23, 4, 127}, {24, 16, 128}, {25, 17, 129},
                            {49, 33, 40}, {3, 5, 300},  {60, 1, 7}};
    double worst = 0;
    for_each_type_of_three(sums, shapes, [&](const shape& s, const auto& t, const auto& o) {
        worst = std::max(worst, check<A>(s, {t[0], t[1], t[2]}, {o[0], o[1], o[2]}));
    });
    for_each_layout_of_three([](layout a, layout b, layout c) {
        check<A>({25, 17, 131}, {sums, sums, sums}, {a, b, c});
    });
    CHECK(worst > 0.05);
}

} // namespace

TEST_CASE("products are added to a weight, of every type and layout") {
    check_all<float>();
    check_all<double>();
}

TEST_CASE("elements whose sum is 0 keep their bits") {
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16}) {
        problem<float> p({26, 3, 140}, {element_type::f32, type, type}, {});
        p.weight.fill(-0.0);
        p.left.fill(0);
        snapshot before = p.weight.take_snapshot();
        p.run();
        CHECK(p.weight.unchanged_since(before));
        // A NaN that signals is not touched where nothing is added, either.
        guarded_tensor<2> fresh(type, {26, 140});
        before = fresh.take_snapshot();
        kernels::add_product<default_arch, float>(p.left, p.right, factor, fresh);
        CHECK(fresh.unchanged_since(before));
        // Nor by one row's sums those of another, nor by one column's.
        p.weight.fill(-0.0);
        for (index_t k = 0; k < 3; ++k)
            set_element(p.left.ref(), {5, k}, 1);
        transform_elements(p.right.ref(), [](double) { return 0; });
        set_element(p.right.ref(), {1, 130}, 2);
        p.run(1);
        for_each_position(p.weight.extents(), [&](const position<2>& at) {
            const double value = element(p.weight.ref(), at);
            const bool changed = at[0] == 5 && at[1] == 130;
            CHECK(value == (changed ? 2 : 0));
            CHECK(std::signbit(value) == !changed);
        });
    }
}

TEST_CASE("a weight is rounded once") {
    // Each of the terms alone would be lost.
    guarded_tensor<2> left(element_type::f32, {1, 16}), right(element_type::f32, {16, 5});
    guarded_tensor<2> weight(element_type::bf16, {1, 5});
    left.fill(0x1p-10);
    right.fill(1);
    weight.fill(1);
    kernels::add_product<default_arch, float>(left, right, 1, weight);
    for (index_t i = 0; i < 5; ++i)
        CHECK(element(weight.ref(), {0, i}) == 1 + 0x1p-6);
}

TEST_CASE("nothing is added where there is nothing") {
    for (const shape& s : {shape{0, 3, 5}, {4, 0, 5}, {4, 3, 0}}) {
        problem<float> p(s);
        const snapshot before = p.weight.take_snapshot();
        p.run();
        CHECK(p.weight.unchanged_since(before));
    }
}

TEST_CASE("planted bugs of a product are found") {
    problem<float> once({25, 17, 131}), other({25, 17, 131});
    once.run();
    other.run(-factor);
    CHECK_FALSE(compare_bitwise(other.weight.ref(), once.weight.ref()));
    other.run(2 * factor);
    CHECK_FALSE(compare_bitwise(other.weight.ref(), once.weight.ref()));
}
