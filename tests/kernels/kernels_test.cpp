#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/kernels/kernels.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

// The functions that the folders above call: which accumulator each takes, and that it hands its
// arguments on. What is computed is tested beside the kernels themselves.

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr element_type f32 = element_type::f32;
constexpr element_type f64 = element_type::f64;

// 1 + tiny is 1 in float, and not in double.
constexpr double tiny = 0x1p-40;
double one_and_tiny(element_type sums) {
    return sums == f64 ? 1 + tiny : 1;
}

const std::array<index_t, 2> both_rows{1, 0};
const row_set rows{both_rows.data(), 2};

/// A tensor of one value, which a kernel may read.
template <std::size_t Rank>
struct filled : guarded_tensor<Rank> {
    filled(element_type type, const std::array<index_t, Rank>& extents, double value)
        : guarded_tensor<Rank>(type, extents) {
        this->fill(value);
    }
};

// Elements 1, tiny, 0, 0 ... along an axis: their sum is 1 + tiny if it is kept in double, else 1.
template <std::size_t Rank>
void set_terms(const tensor_ref<Rank>& tensor, std::size_t axis) {
    for_each_position(tensor.extents(), [&](const position<Rank>& at) {
        set_element(tensor, at, at[axis] == 0 ? 1 : at[axis] == 1 ? tiny : 0);
    });
}

template <std::size_t Rank>
bool all_are(const tensor_ref<Rank>& tensor, double value) {
    bool equal = true;
    for_each_position(tensor.extents(), [&](const position<Rank>& at) {
        equal = equal && is_exactly(element(tensor, at), value);
    });
    return equal;
}

} // namespace

TEST_CASE("shrink sums in the type of hidden") {
    for (element_type sums : sum_types)
        for (element_type of_x : {f32, element_type::bf16}) {
            CAPTURE(std::string(name_of(sums)));
            filled<2> x(of_x, {2, 5}, 1), a(f32, {5, 3}, 0), hidden(sums, {2, 3}, 9);
            set_terms(a.ref(), 0);
            kernels::shrink(rows, x, a, 2, hidden);
            CHECK(all_are(hidden.ref(), 2 * one_and_tiny(sums)));
            CHECK(hidden.intact());
        }
    filled<2> x(f64, {2, 5}, 1), a(f64, {5, 3}, 1), hidden(f64, {2, 3}, 9);
    kernels::shrink(rows, x, a, 0.1, hidden);
    CHECK(all_are(hidden.ref(), 0.1 * 5)); // a factor of double keeps its digits
}

TEST_CASE("expand sums in the type of hidden, and y may be of any") {
    for (element_type sums : sum_types)
        for (element_type of_y : all_element_types) {
            if (of_y == f64 && sums == f32) continue;
            CAPTURE(std::string(name_of(sums)));
            CAPTURE(std::string(name_of(of_y)));
            filled<2> hidden(sums, {2, 5}, 1), b(f32, {5, 3}, 0), y(of_y, {2, 3}, -1);
            set_terms(b.ref(), 0);
            kernels::expand(rows, hidden, b, 2, y);
            // -1 + 2 (1 + tiny), which f64 alone can hold.
            CHECK(all_are(y.ref(), of_y == f64 ? 1 + 2 * tiny : 1));
            CHECK(y.intact());
            // -2 + 2 (1 + tiny) tells what the sum was, whatever holds it.
            y.fill(-2);
            kernels::expand(rows, hidden, b, 2, y);
            const double rest = sums == f64 ? 2 * tiny : 0;
            CHECK(all_are(y.ref(), of_y == element_type::f16 ? 0 : rest));
        }
}

TEST_CASE("outer products are summed in the type of sums") {
    for (element_type sums : sum_types)
        for (bool accumulate : {false, true}) {
            CAPTURE(std::string(name_of(sums)));
            CAPTURE(accumulate);
            filled<2> x(f32, {2, 5}, 1), hidden(sums, {2, 3}, 1), out(sums, {3, 5}, 1);
            set_terms(x.ref(), 0);
            const double terms = one_and_tiny(sums);
            kernels::add_outer_products(rows, x, hidden, 2, out, accumulate, {});
            CHECK(all_are(out.ref(), 2 * terms + (accumulate ? 1 : 0)));
            kernels::add_outer_products(rows, x, hidden, 2, out, false, x);
            CHECK(all_are(out.ref(), 2 * terms));
            CHECK(out.intact());
        }
}

TEST_CASE("sums are added in their own type") {
    for (element_type sums : sum_types)
        for (element_type type : all_element_types) {
            if (type == f64 && sums == f32) continue;
            filled<2> finished(sums, {3, 5}, sums == f64 ? 1 + tiny : 1), matrix(type, {3, 5}, -1);
            kernels::add_sums(finished, matrix);
            CHECK(all_are(matrix.ref(), sums == f32 || type == element_type::f16 ? 0 : tiny));
            CHECK(matrix.intact());
        }
}

TEST_CASE("mix sums in the type that it is told") {
    for (element_type sums : sum_types)
        for (element_type of_mixed : all_element_types) {
            if (of_mixed == f64 && sums == f32) continue;
            CAPTURE(std::string(name_of(sums)));
            CAPTURE(std::string(name_of(of_mixed)));
            filled<2> weights(f32, {4, 3}, 1);
            filled<3> modules(f32, {3, 2, 5}, 0), mixed(of_mixed, {4, 2, 5}, 9);
            // 1 + tiny - 1: what is left tells what the sum was.
            set_terms(modules.ref(), 0);
            transform_elements(modules.ref().slice(0, 2), [](double) { return -1; });
            kernels::mix(weights, modules, mixed, sums);
            const double rest = sums == f64 ? tiny : 0;
            CHECK(all_are(mixed.ref(), of_mixed == element_type::f16 ? 0 : rest));
            CHECK(mixed.intact());
        }
}

TEST_CASE("the gradients of mix are summed in the type that it is told") {
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        filled<2> weights(f32, {3, 4}, 1), d_weights(f32, {3, 4}, -1);
        filled<3> modules(f32, {4, 1, 2}, 0), d_mixed(f32, {3, 1, 2}, 1),
            d_modules(f32, {4, 1, 2}, -1);
        set_terms(modules.ref(), 2);
        set_terms(d_mixed.ref(), 0);
        const auto backward = [&](const tensor_ref<3>& of_modules,
                                  const tensor_ref<2>& of_weights) {
            kernels::mix_backward(weights, modules, d_mixed, of_modules, of_weights, sums);
        };
        // -1 + (1 + tiny) for each module, over the entries; and over the elements for the weights
        // of entry 0, whose gradient is 1.
        backward(d_modules, {});
        CHECK(all_are(d_modules.ref(), sums == f64 ? tiny : 0));
        CHECK(all_are(d_weights.ref(), -1));
        backward({}, d_weights);
        CHECK(all_are(d_weights.ref().slice(0, 0), sums == f64 ? tiny : 0));
        CHECK(all_are(d_weights.ref().slice(0, 2), -1));
    }
}

TEST_CASE("outputs of modules are mixed in the type of hidden") {
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        filled<3> hidden(sums, {2, 3, 1}, 1), matrices(f32, {3, 1, 5}, 0);
        filled<2> weights(element_type::bf16, {2, 3}, 1);
        filled<2> y(f32, {2, 5}, -2);
        set_terms(matrices.ref(), 0);
        kernels::expand_rows(rows, hidden, weights, matrices, 2, y);
        CHECK(all_are(y.ref(), sums == f64 ? 2 * tiny : 0));
        CHECK(y.intact());
    }
}

TEST_CASE("rows are rescaled in the type that it is told") {
    // Its square has a last bit that only double holds.
    const double near_one = 1 + 0x1p-20;
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        filled<2> from(f32, {2, 5}, near_one), to(sums, {2, 5}, 9);
        filled<1> scales(f32, {5}, near_one);
        kernels::rescale_rows(rows, from, scales, to, false, sums);
        CHECK(all_are(to.ref(), sums == f64 ? near_one * near_one : 1 + 0x1p-19));
        kernels::rescale_rows(rows, from, {}, to, true, sums);
        CHECK(all_are(to.ref(), (sums == f64 ? near_one * near_one : 1 + 0x1p-19) + near_one));
    }
}

TEST_CASE("products of rows are summed in the type that it is told") {
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        filled<2> x(f32, {2, 5}, 1), d_y(f32, {2, 5}, 1);
        filled<1> totals(f32, {5}, -1);
        set_terms(x.ref(), 0);
        kernels::add_products_of_rows(rows, x, d_y, totals, sums);
        CHECK(all_are(totals.ref(), sums == f64 ? tiny : 0));
    }
}

TEST_CASE("products of matrices are added in the type that it is told") {
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        filled<2> left(f32, {3, 2}, 1), right(f32, {2, 5}, 0), weight(f32, {3, 5}, -2);
        set_terms(right.ref(), 0);
        kernels::add_product(left, right, 2, weight, sums);
        CHECK(all_are(weight.ref(), sums == f64 ? 2 * tiny : 0));
    }
}

TEST_CASE("a run is rescaled in the type that it is told") {
    for (bool divide : {false, true}) {
        guarded_tensor<1> of_f32(f32, {200}), of_f64(f32, {200}), before(f32, {200});
        for (guarded_tensor<1>* run : {&of_f32, &of_f64, &before})
            run->fill(random_source(7));
        kernels::rescale_run(of_f32, 0.1, divide, f32);
        kernels::rescale_run(of_f64, 0.1, divide, f64);
        int other = 0;
        for (index_t i = 0; i < 200; ++i) {
            const double x = element(before.ref(), {i});
            const auto single = static_cast<float>(x);
            const float in_float = divide ? single / 0.1F : single * 0.1F;
            const auto in_double = static_cast<float>(divide ? x / 0.1 : x * 0.1);
            CHECK(element(of_f32.ref(), {i}) == static_cast<double>(in_float));
            CHECK(element(of_f64.ref(), {i}) == static_cast<double>(in_double));
            if (in_float < in_double || in_double < in_float) ++other;
        }
        CHECK(other > 10); // or the types could not be told apart
    }
}

TEST_CASE("runs are read and written exactly, in both types of sums") {
    for (element_type type : all_element_types)
        for (layout order : {layout::row_major, layout::padded, layout::reversed}) {
            CAPTURE(std::string(name_of(type)));
            guarded_tensor<2> memory(type, {37, 1}, order), copy(type, {37, 1}, order);
            memory.fill(random_source(5));
            const tensor_ref<1> elements = memory.ref().slice(1, 0);
            std::vector<double> wide(37);
            kernels::read_elements(elements, wide.data());
            for (index_t i = 0; i < 37; ++i)
                CHECK(wide[static_cast<std::size_t>(i)] == element(elements, {i}));
            kernels::write_elements(wide.data(), copy.ref().slice(1, 0));
            CHECK(compare_bitwise(copy.ref(), memory.ref()));
            CHECK(copy.intact());
            if (type == f64) continue;
            std::vector<float> narrow(37);
            kernels::read_elements(elements, narrow.data());
            copy.fill(9);
            kernels::write_elements(narrow.data(), copy.ref().slice(1, 0));
            CHECK(compare_bitwise(copy.ref(), memory.ref()));
            CHECK(std::vector<double>(narrow.begin(), narrow.end()) == wide);
        }
}
